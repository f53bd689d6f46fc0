from __future__ import annotations

import os
import stat

import pytest

from unmask.errors import UnmaskError
from unmask.web.vault import Full, Vault


def test_only_the_owner_can_look_into_it(tmp_path):
    vault = Vault(tmp_path / "deep" / "root", 1000)
    file = vault.new()
    file.write(b"x")
    for path, mode in [
        (tmp_path / "deep" / "root", 0o700), (vault.path, 0o700), (file.path, 0o600),
    ]:  # fmt: skip
        assert stat.S_IMODE(path.stat().st_mode) == mode
    vault.close()
    assert not vault.path.exists()


def test_names_are_random_and_say_nothing(tmp_path):
    vault = Vault(tmp_path, 1000)
    names = {vault.new().path.name for _ in range(50)}
    assert len(names) == 50 and all(len(name) == 32 and name.isalnum() for name in names)
    vault.close()


def test_discarding_gives_room_back_once(tmp_path):
    vault = Vault(tmp_path, 10)
    file = vault.new()
    file.write(b"x" * 10)
    with pytest.raises(Full):
        vault.new().write(b"y")
    file.discard()
    file.discard()
    assert vault.used == 0 and not file.path.exists()
    vault.new().write(b"y" * 10)
    vault.close()


def test_the_next_start_deletes_what_a_crash_left(tmp_path):
    dead = tmp_path / "server-dead"
    dead.mkdir()
    (dead / "0123").write_bytes(b"a face")
    (dead / "lock").touch()
    lockless = tmp_path / "server-without-lock"
    lockless.mkdir()
    (lockless / "4567").write_bytes(b"a face")
    vault = Vault(tmp_path, 1000)
    assert vault.swept == 2 and not dead.exists() and not lockless.exists()
    vault.close()


def test_living_servers_are_left_alone(tmp_path):
    first = Vault(tmp_path, 1000)
    file = first.new()
    second = Vault(tmp_path, 1000)
    assert second.swept == 0 and file.path.exists()
    second.close()
    assert file.path.exists()
    first.close()


def test_a_root_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnmaskError, match="name another"):
        Vault(tmp_path / "root", 1000)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_root_of_another_user_is_refused(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    os.chown(root, 12345, 12345)
    with pytest.raises(UnmaskError, match="name another"):
        Vault(root, 1000)
