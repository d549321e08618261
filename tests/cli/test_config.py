"""Settings: what each option means, where it may come from, and that a mistake is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from wsfs import config, configfile, values
from wsfs.config import MountSettings, load_settings, parse_mount_options
from wsfs.errors import UsageError

URL = "s3://bucket/ada"
Write = Callable[..., dict[str, str]]


def load(options: str = "", **more: object) -> MountSettings:
    return load_settings(URL, "/workspace", options=options, **{"environ": {}} | more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("512", 512), ("64K", 65536), ("10G", 10 * 2**30), ("1.5GiB", 3 * 2**29), ("2tb", 2**41)],
)
def test_sizes(text: str, size: int) -> None:
    assert values.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "10X", "10 G B", "1e3", "\u0661"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(UsageError, match="not a size"):
        values.parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("30", 30), ("30s", 30), ("2m", 120), ("1.5h", 5400), ("500ms", 0.5), ("7d", 604800)],
)
def test_durations(text: str, seconds: float) -> None:
    assert values.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1", "1y", "soon", "inf", "nan"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(UsageError, match="not a duration"):
        values.parse_duration(text)


def test_defaults() -> None:
    settings = load()
    assert (settings.save_interval, settings.read_only, settings.xattr, settings.kernel_options) == (
        30.0,
        False,
        False,
        (),
    )
    assert settings.mountpoint == Path("/workspace")


def test_every_option_is_a_field() -> None:
    assert set(config.OPTIONS) <= {field.name for field in fields(MountSettings)}


def test_options_become_settings() -> None:
    settings = load(
        "ro,allow_other,uid=1000,gid=root,umask=027,xattr,takeover,endpoint_url=https://s3.example.org/,"
        "addressing_style=path,save_interval=2m,cache_dir=/c,cache_size=10G,stop_deadline=1h,nosuid,nodev"
    )
    assert settings == MountSettings(
        url=URL,
        mountpoint=Path("/workspace"),
        cache_dir=Path("/c"),
        endpoint_url="https://s3.example.org",
        addressing_style="path",
        save_interval=120.0,
        read_only=True,
        allow_other=True,
        uid=1000,
        gid=0,
        umask=0o027,
        xattr=True,
        takeover=True,
        cache_size=10 * 2**30,
        stop_deadline=3600.0,
        kernel_options=("nosuid", "nodev"),
    )


def test_generic_options_that_are_for_others_are_ignored() -> None:
    text = (
        "defaults,auto,noauto,user,user=ada,nouser,users,owner,group,nofail,_netdev,x-systemd.automount,"
        "x-systemd.requires=a.service,x-gvfs-show,comment=hello,relatime,strictatime,nodiratime,default_permissions,,rw"
    )
    assert parse_mount_options(text) == {"read_only": False}


@pytest.mark.parametrize(
    ("text", "kernel"),
    [
        ("nosuid,nodev,noexec,noatime,sync", ("nosuid", "nodev", "noexec", "noatime", "sync")),
        ("nosuid,suid", ("suid",)),
        ("async,sync", ("sync",)),
        ("nosuid,nodev,nosuid", ("nodev", "nosuid")),
    ],
)
def test_kernel_options_are_passed_on_and_the_last_one_wins(text: str, kernel: tuple[str, ...]) -> None:
    assert load(text).kernel_options == kernel


def test_last_of_ro_and_rw_wins() -> None:
    assert not load("ro,rw").read_only
    assert load("rw,ro").read_only


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("alow_other", "'alow_other': did you mean allow_other"),
        ("cache_sise=3", "cache_size"),
        ("nosiud", "nosuid"),
        ("frobnicate", "wsfs's own are endpoint_url"),
        ("frobnicate=3", "'frobnicate'"),
        ("remount,ro", "unmount it and mount it"),
        ("cache_size", "cache_size=..."),
        ("cache_size=", "cache_size: '' is not a size"),
        ("save_interval=soon", "save_interval: 'soon'"),
        ("umask=9", "octal"),
        ("uid=nobody-here", "no user 'nobody-here'"),
        ("gid=nobody-here", "no group"),
        ("addressing_style=odd", "auto, path, virtual"),
        ("log_format=xml", "text, json"),
        ("endpoint_url=s3.example.org", "http"),
        ("endpoint_url=https://key:secret@s3.example.org", "credentials do not belong"),
        ("xattr=perhaps", "neither yes nor no"),
        ('cache_dir="/a', "quotation"),
        ("cache_size=" + "9" * 400, "more than any disk"),
        ("save_interval=" + "9" * 400, "too long a time"),
        ("uid=" + "9" * 5000, "not the number of a user"),
        ("gid=4294967295", "not the number of a user"),
        ("endpoint_url=https://[", "is none"),
    ],
)
def test_mistakes_are_named(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(text)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_sloppy_skips_what_nobody_knows_but_not_bad_values() -> None:
    assert load("frobnicate,ro", sloppy=True).read_only
    with pytest.raises(UsageError):
        load("cache_size=x", sloppy=True)


def test_commas_in_values() -> None:
    assert load(r"cache_dir=/a\,b").cache_dir == Path("/a,b")
    assert load('cache_dir="/a,b",ro').cache_dir == Path("/a,b")


def test_precedence_is_flags_options_environment_default() -> None:
    environ = {"WSFS_SAVE_INTERVAL": "1m", "WSFS_CACHE_SIZE": "1G", "WSFS_XATTR": "yes", "WSFS_ENDPOINT_URL": ""}
    settings = load("save_interval=2m", environ=environ, flags={"cache_size": 5, "cache_dir": None})
    assert (settings.save_interval, settings.cache_size, settings.xattr) == (120.0, 5, True)
    assert load(environ=environ).save_interval == 60.0
    assert not load("xattr=no", environ=environ).xattr
    assert settings.endpoint_url is None


def test_mistake_in_the_environment_names_the_variable() -> None:
    with pytest.raises(UsageError, match="WSFS_CACHE_SIZE"):
        load(environ={"WSFS_CACHE_SIZE": "big"})


def test_takeover_is_for_one_mount_and_not_for_an_environment() -> None:
    assert not load(environ={"WSFS_TAKEOVER": "1"}).takeover


def test_default_cache_is_one_for_each_workspace() -> None:
    def cache(url: str, endpoint: str | None = None, **environ: str) -> Path:
        return config.default_cache_dir(url, endpoint, {"HOME": "/home/ada"} | environ, root=False)

    assert cache(URL).parent == Path("/home/ada/.cache/wsfs")
    assert cache(URL, XDG_CACHE_HOME="/x").parent == Path("/x/wsfs")
    assert cache(URL) == cache(URL + "/")
    assert len({cache(URL), cache("s3://bucket/bob"), cache(URL, "http://other")}) == 3
    assert config.default_cache_dir(URL, root=True).parent == Path("/var/cache/wsfs")
    assert load(environ={"WSFS_CACHE_DIR": "/c"}).cache_dir == Path("/c")
    # The name of the usual spelling must never change: caches have it. The others are the same directory.
    assert cache("file:///a/b").name == "1dc097aa81f4d1a1"
    for other in ("file:///a//b", "file:///a/../a/b", "file:///a/./b/", "file:////a/b"):
        assert cache(other) == cache("file:///a/b")
    assert cache("file:///not\udcffutf8") != cache("file:///not")


@pytest.mark.parametrize("url", ["", "s3://key:secret@bucket/x", "s3://[", "s3://key:secret@["])
def test_urls_that_cannot_be(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_settings(url, "/workspace", environ={})
    assert "secret" not in str(caught.value)


class TestFiles:
    """Configuration files: which wins, and that a mistake names the file and the key."""

    @pytest.fixture
    def write(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
        monkeypatch.setattr(configfile, "MACHINE_FILE", tmp_path / "etc" / "config.toml")
        (tmp_path / "etc").mkdir()
        (tmp_path / "home" / ".config" / "wsfs").mkdir(parents=True)

        def write(machine: str = "", user: str = "") -> dict[str, str]:
            (tmp_path / "etc" / "config.toml").write_text(machine)
            (tmp_path / "home" / ".config" / "wsfs" / "config.toml").write_text(user)
            return {"HOME": str(tmp_path / "home")}

        return write

    def test_precedence(self, write: Write) -> None:
        machine = 'save_interval = "1m"\ncache_size = "1G"\nprice = 0.02\nxattr = true\nstore_timeout = 90\n'
        environ = write(machine, 'save_interval = "2m"\ncache_size = "2G"\n["s3://bucket"]\ncache_size = "3G"\n')
        settings = load("retain=2h/1d/30d", environ=environ | {"WSFS_SAVE_INTERVAL": "3m"})
        assert (settings.save_interval, settings.cache_size, settings.price) == (180.0, 3 * 2**30, 0.02)
        assert settings.xattr
        assert settings.store_timeout == 90.0
        assert load(environ=environ).save_interval == 120.0
        assert load("save_interval=5", environ=environ, flags={"cache_size": 7}).cache_size == 7

    def test_the_section_with_the_longest_url_wins(self, write: Write) -> None:
        text = '["s3://bucket/ada"]\nprice = 3\n["s3://bucket/"]\nprice = 2\n["s3://buck"]\nprice = 1\n'
        environ = write("price = 4\n" + text)

        def price(url: str) -> float:
            return load_settings(url, "/workspace", environ=environ).price

        urls = ["s3://bucket/ada", "s3://bucket/ada/x", "s3://bucket/adam", "s3://bucket", "s3://bucke", "file:///x"]
        assert [price(url) for url in urls] == [3, 3, 2, 2, 4, 4]

    def test_where_each_value_comes_from(self, write: Write, tmp_path: Path) -> None:
        environ = write('price = 1\n["s3://bucket"]\numask = "027"\n') | {"WSFS_CACHE_SIZE": "1G"}
        found = config.merged_settings(URL, environ, {"xattr": True}, {"key_file": Path("/k"), "kms_key": None})
        file = tmp_path / "etc" / "config.toml"
        assert found == {
            "price": (1.0, str(file)),
            "umask": (0o027, f'{file} ["s3://bucket"]'),
            "cache_size": (2**30, "environment WSFS_CACHE_SIZE"),
            "xattr": (True, "-o"),
            "key_file": (Path("/k"), "flag"),
        }

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("cache_sise = 3", "config.toml: unknown key 'cache_sise': did you mean cache_size or"),
            ('["s3://other"]\ncache_sise = 3', "[\"s3://other\"] unknown key 'cache_sise'"),
            ('aws_secret_access_key = "hush"', "unknown key 'aws_secret_access_key'"),
            ("cache_size = true", 'cache_size: it must be in quotes, as in "10G"'),
            ("cache_size = [1]", "cache_size: it must be in quotes"),
            ('cache_size = "big"', "cache_size: 'big' is not a size"),
            ('xattr = "yes"', "xattr: it must be true or false"),
            ("takeover = true", "config.toml: takeover is for one mount only"),
            ("allow_other = true", "allow_other is for one workspace: put it into a section"),
            ('["s3://b"]\numask = 0o22', "umask: it must be in quotes"),
            ("[workspace]\nprice = 1", "[workspace] is no section"),
            ('["s3://key:hush@bucket"]\nprice = 1', "credentials in its URL"),
            ('endpoint_url = "https://key:hush@s3.example.org"', "endpoint_url: credentials do not belong"),
            ("price = ", "config.toml: is not TOML"),
        ],
    )
    def test_mistakes_name_the_file_and_the_key(self, write: Write, text: str, words: str) -> None:
        with pytest.raises(UsageError) as caught:
            load(environ=write(text))
        assert words in str(caught.value)
        assert "hush" not in str(caught.value)

    def test_one_file_in_place_of_all(self, write: Write, tmp_path: Path) -> None:
        environ = write("price = 1", "price = 2")
        (tmp_path / "mine.toml").write_text("free_size = 5")
        settings = load(environ=environ | {"WSFS_CONFIG": str(tmp_path / "mine.toml")})
        assert (settings.price, settings.free_size) == (0.01, 5)
        with pytest.raises(UsageError, match="WSFS_CONFIG names it"):
            load(environ=environ | {"WSFS_CONFIG": str(tmp_path / "missing.toml")})
        (tmp_path / "mine.toml").write_bytes(b"\xff")
        with pytest.raises(UsageError, match="UTF-8"):
            load(environ=environ | {"WSFS_CONFIG": str(tmp_path / "mine.toml")})
