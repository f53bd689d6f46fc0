// Loaded before the page is drawn, so that it appears in its colours at once.
(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const apply = () => { root.dataset.theme = stored() ?? (system.matches ? "dark" : "light"); };
  apply();
  system.addEventListener("change", apply);
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const name = () => {
      const next = root.dataset.theme === "dark" ? "light" : "dark";
      button.textContent = next === "dark" ? "Dark" : "Light";
      button.setAttribute("aria-label", `Use the ${next} colours`);
      return next;
    };
    name();
    system.addEventListener("change", name);
    button.addEventListener("click", () => {
      try { localStorage.setItem("theme", name()); } catch { /* private windows may refuse */ }
      root.dataset.theme = name();
      name();
    });
  });
})();
