"""Every option of every lunr service, in one place.

``etc/lunr.conf.sample`` is generated from here; a test fails when it is stale.
There is no global: each program calls :func:`load` and hands the values on.
"""

from __future__ import annotations

from collections.abc import Sequence

from oslo_config import cfg

from lunr import __version__
from lunr.common import errors

ConfigOpts = cfg.ConfigOpts

DEFAULT = [
    cfg.StrOpt(
        "log_level",
        default="INFO",
        help="Least severe level that is logged.",
        choices=[
            ("DEBUG", "every step, to look for a fault"),
            ("INFO", "what was done"),
            ("WARNING", "what went wrong and was got over"),
            ("ERROR", "what failed"),
        ],
    ),
    cfg.StrOpt(
        "log_style",
        default="text",
        choices=[("text", "for people"), ("json", "one object a line, for programs")],
        help="How a log line looks.",
    ),
]

DATABASE = [
    cfg.StrOpt(
        "connection",
        default="sqlite:////var/lib/lunr/lunr.db",
        secret=True,
        help="SQLAlchemy URL of the database: sqlite:////PATH or postgresql://USER:PASSWORD@HOST/NAME.",
    ),
    cfg.IntOpt(
        "pool_size", default=10, min=1, help="Connections that one process keeps open (PostgreSQL)."
    ),
]

API = [
    cfg.HostAddressOpt("bind_host", default="127.0.0.1", help="Address the API listens on."),
    cfg.PortOpt("bind_port", default=8080, help="Port the API listens on."),
    cfg.StrOpt(
        "auth",
        default="tokens",
        choices=[
            ("tokens", "lunr's own"),
            ("keystone", "and those of OpenStack Keystone, see section [keystone_authtoken]"),
        ],
        help="Which tokens are good. The section [keystone_authtoken] is the one of other OpenStack services.",
    ),
    cfg.ListOpt(
        "admin_roles",
        default=["admin"],
        help="Roles in Keystone that make an admin of every account; with any other role one is a member of the own project.",
    ),
    cfg.StrOpt(
        "secret_key_file",
        default="/etc/lunr/secret.key",
        help="File with the key (made by `lunr-manage key make`) that encrypts CHAP secrets in the database. Mode 0600.",
    ),
    cfg.IntOpt(
        "max_body_bytes",
        default=1 << 20,
        min=1024,
        help="Largest request body that is read; more is refused with 413.",
    ),
    cfg.IntOpt(
        "page_limit",
        default=1000,
        min=1,
        help="Most records in one page of a list, and the default.",
    ),
    cfg.IntOpt(
        "lease_seconds",
        default=60,
        min=2,
        help="How long a node may work on a job without a sign of life before the job is given out again.",
    ),
    cfg.IntOpt(
        "job_attempts",
        default=5,
        min=1,
        help="How often a job that fails for a passing reason, or whose node dies, is tried.",
    ),
    cfg.IntOpt(
        "retry_delay",
        default=5,
        min=0,
        help="Seconds before the second attempt at a job; doubled for each further one, to at most 300.",
    ),
    cfg.IntOpt(
        "node_timeout",
        default=30,
        min=2,
        help="Seconds without a heartbeat after which a node is DOWN.",
    ),
    cfg.StrOpt(
        "placement",
        default="broad_fill",
        choices=[("broad_fill", "the emptiest"), ("deep_fill", "the fullest")],
        help="Which of the nodes with room gets a new volume.",
    ),
    cfg.StrOpt(
        "iqn_prefix",
        default="iqn.2026-11.io.lunr",
        help="Start of the targets' iSCSI qualified names; ':' and the volume's id follow.",
    ),
]

QUOTA = [
    cfg.IntOpt(
        "volumes",
        default=1000,
        min=0,
        help="Volumes of an account, unless it was given its own quota.",
    ),
    cfg.IntOpt("gigabytes", default=102400, min=0, help="GiB of an account's volumes in all."),
    cfg.IntOpt("snapshots", default=1000, min=0, help="Snapshots of an account."),
    cfg.IntOpt("backups", default=10000, min=0, help="Backups of an account."),
]

NODE = [
    cfg.StrOpt(
        "id", default="", help="This storage node's id, as made by `lunr-manage node create`."
    ),
    cfg.StrOpt("api_url", default="http://127.0.0.1:8080", help="Where the API is."),
    cfg.StrOpt(
        "token_file",
        default="/etc/lunr/node.token",
        help="File with the node's token, as printed by `lunr-manage node create`. Mode 0600.",
    ),
    cfg.HostAddressOpt(
        "bind_host", default="127.0.0.1", help="Address of the node's own HTTP API for operators."
    ),
    cfg.PortOpt(
        "bind_port", default=8081, help="Port of the node's own HTTP API; 0 picks a free one."
    ),
    cfg.IntOpt("heartbeat", default=5, min=1, help="Seconds between two signs of life to the API."),
    cfg.IntOpt(
        "quick_workers",
        default=4,
        min=1,
        help="Short jobs (create, delete, export, …) done at once.",
    ),
    cfg.IntOpt(
        "data_workers",
        default=2,
        min=1,
        help="Jobs that move data (backup, restore, verify, …) done at once.",
    ),
    cfg.IntOpt(
        "backup_mib_per_second",
        default=0,
        min=0,
        help="The most MiB a second that one backup, restore or verification sends to the store and gets from it; 0: no limit.",
    ),
    cfg.IntOpt(
        "concurrent_fills",
        default=2,
        min=1,
        help="Restored volumes that are filled at once. The others can be used as well, and fetch what is read.",
    ),
    cfg.StrOpt(
        "state_dir",
        default="/var/lib/lunr/node",
        help="Folder for what the node must remember of volumes that are being restored; on a disk.",
    ),
    cfg.StrOpt(
        "dm_clone",
        default="auto",
        choices=[
            ("auto", "where the kernel has dm-clone"),
            ("off", "through FUSE in any case"),
        ],
        help="Whether the kernel fills new restored volumes (pools lvm and thin), see docs/restores.md.",
    ),
    cfg.StrOpt(
        "run_dir",
        default="/run/lunr/node",
        help="Folder for what is good until the next boot; best in memory.",
    ),
    cfg.StrOpt(
        "pool",
        default="files",
        choices=[
            ("files", "sparse files on a file system with reflink"),
            ("lvm", "logical volumes, all of their room taken at once; see section [lvm]"),
            ("thin", "volumes in a thin pool of LVM; see section [lvm]"),
        ],
        help="What keeps the volumes.",
    ),
    cfg.StrOpt(
        "target",
        default="tgt",
        choices=[
            ("tgt", "tgtd, the iSCSI target in user space; see section [tgt]"),
            ("lio", "the kernel's iSCSI target; see section [lio]"),
        ],
        help="What exports the volumes.",
    ),
    cfg.BoolOpt(
        "detach_at_stop",
        default=False,
        help="Take all exports down when the node is stopped, whoever is logged in. Else initiators go on without the agent.",
    ),
    cfg.StrOpt(
        "keep_reference",
        default="auto",
        choices=[
            ("auto", "on with the pools files and thin, off with lvm"),
            ("on", "always"),
            ("off", "never: each backup reads the whole volume"),
        ],
        help="Whether the snapshot of a volume's last backup is kept, so that the next one reads only what has changed. With the pool lvm it slows down those who write.",
    ),
    cfg.IntOpt(
        "reference_days",
        default=14,
        min=1,
        help="Days after which such a snapshot is given up: it holds what was overwritten since. They are given up earlier when the pool gets full.",
    ),
    cfg.FloatOpt(
        "overcommit",
        default=1.0,
        min=0.1,
        help="How many times the pool's bytes may be promised to volumes, where these are thin (files, thin).",
    ),
]

FILES = [
    cfg.StrOpt(
        "path",
        default="/var/lib/lunr/pool",
        help="Folder for volumes. If its file system has no reflink (XFS and btrfs have), the pool makes an XFS image in it and mounts that.",
    ),
    cfg.IntOpt(
        "image_gib",
        default=100,
        min=1,
        help="Size of that XFS image in GiB; it is sparse and takes what is written.",
    ),
]

LVM = [
    cfg.StrOpt("group", default="lunr", help="Volume group that holds the volumes."),
    cfg.StrOpt(
        "thin_pool", default="pool", help="Thin pool in that group, for the pool `thin` of [node]."
    ),
    cfg.IntOpt(
        "full_percent",
        default=85,
        min=1,
        max=100,
        help="How full a thin pool's data or metadata may be; beyond, it gets no new volumes and raises its alarm.",
    ),
    cfg.IntOpt(
        "reserve_percent",
        default=10,
        min=0,
        max=90,
        help="Share of the group that is not promised to volumes but kept for snapshots (pool `lvm`).",
    ),
    cfg.IntOpt(
        "snapshot_percent",
        default=10,
        min=1,
        max=100,
        help="Room that a new snapshot gets for what is overwritten meanwhile, as a share of its volume (pool `lvm`).",
    ),
    cfg.IntOpt(
        "snapshot_grow_at",
        default=60,
        min=10,
        max=95,
        help="How full (percent) that room may be before it is enlarged by as much again.",
    ),
    cfg.IntOpt(
        "wipe_mib_per_second",
        default=100,
        min=0,
        help="How fast deleted volumes are overwritten, unless the disks forget them at once; 0: no limit (pool `lvm`).",
    ),
]

LIO = [
    cfg.StrOpt(
        "portal", default="127.0.0.1:3260", help="HOST:PORT that the kernel's target listens on."
    ),
]

TGT = [
    cfg.StrOpt(
        "socket",
        default="/run/lunr/tgtd/socket.0",
        help="Control socket of the tgtd that exports the volumes; it is for lunr alone.",
    ),
    cfg.StrOpt(
        "portal", default="127.0.0.1:3260", help="HOST:PORT that initiators reach that tgtd at."
    ),
]

STORE = [
    cfg.StrOpt(
        "url",
        default="files:/var/lib/lunr/store",
        help="Where backups go: files:/PATH, or swift:PREFIX (one container PREFIX-ACCOUNT for each account).",
    ),
    cfg.StrOpt(
        "key",
        default="file:/etc/lunr/master.key",
        help="The master key, the same on all nodes; each account's keys are derived from it. file:/PATH (made by `lunr-manage key make`, mode 0600, one key a line) or barbican:SECRET_ID[,SECRET_ID] (see sections [key_manager] and [barbican]). The first of several writes, the others are still read.",
    ),
    cfg.StrOpt(
        "encryption",
        default="aes-256-gcm",
        choices=[("aes-256-gcm", "all that volumes hold"), ("none", "nothing")],
        help="What new backups are encrypted with. Any can be read.",
    ),
    cfg.StrOpt(
        "compression",
        default="zstd",
        choices=[("zstd", "those that shrink"), ("none", "none of them")],
        help="Which blocks are compressed.",
    ),
    cfg.IntOpt(
        "concurrency",
        default=4,
        min=1,
        max=32,
        help="Requests to the store at once, for one backup or restore.",
    ),
]

SWIFT = [
    cfg.StrOpt("auth_url", default="", help="Swift's or Keystone's authentication URL."),
    cfg.StrOpt(
        "auth_version",
        default="1",
        choices=[("1", "TempAuth"), ("2", "Keystone's first"), ("3", "Keystone")],
        help="Which way to log in.",
    ),
    cfg.StrOpt("user", default="", help="User name, for version 1 ACCOUNT:USER."),
    cfg.StrOpt("key_file", default="", help="File with that user's password. Mode 0600."),
    cfg.StrOpt(
        "auth_type",
        default="password",
        choices=[
            ("password", "a user and a password"),
            ("v3applicationcredential", "an application credential"),
        ],
        help="What Keystone, version 3, is shown.",
    ),
    cfg.StrOpt(
        "application_credential_id",
        default="",
        help="Id of the application credential; key_file has its secret.",
    ),
    cfg.StrOpt("project_name", default="", help="Keystone project, by its name."),
    cfg.StrOpt("project_id", default="", help="Keystone project, by its id."),
    cfg.StrOpt("user_domain_name", default="Default", help="Keystone domain of the user."),
    cfg.StrOpt(
        "user_domain_id", default="", help="The same by its id, which counts before the name."
    ),
    cfg.StrOpt("project_domain_name", default="Default", help="Keystone domain of the project."),
    cfg.StrOpt(
        "project_domain_id", default="", help="The same by its id, which counts before the name."
    ),
    cfg.StrOpt("region_name", default="", help="Region of the object-store endpoint."),
    cfg.StrOpt(
        "interface",
        default="public",
        choices=[("public", ""), ("internal", ""), ("admin", "")],
        help="Which of the object store's endpoints is used.",
    ),
    cfg.StrOpt("cacert", default="", help="CA bundle for https."),
    cfg.FloatOpt("timeout", default=60.0, min=1.0, help="Seconds one request may stand still."),
    cfg.IntOpt(
        "retries",
        default=5,
        min=0,
        help="How often a request that failed for a passing reason is sent again.",
    ),
]

ORBIT = [
    cfg.IntOpt(
        "interval", default=10, min=1, help="Seconds between two rounds of the housekeeper."
    ),
    cfg.IntOpt(
        "collect_interval",
        default=86400,
        min=1,
        help="Seconds between two garbage collections of an account's backups.",
    ),
    cfg.IntOpt(
        "verify_days",
        default=30,
        min=0,
        help="In how many days every object of an account's backups is read and checked, a share a day; 0: never.",
    ),
    cfg.IntOpt(
        "keep_records",
        default=30 * 86400,
        min=0,
        help="Seconds that records of deleted things and of ended jobs are kept.",
    ),
]

GROUPS: dict[str | None, Sequence[cfg.Opt]] = {
    None: DEFAULT,
    "database": DATABASE,
    "api": API,
    "quota": QUOTA,
    "node": NODE,
    "files": FILES,
    "lvm": LVM,
    "lio": LIO,
    "tgt": TGT,
    "store": STORE,
    "swift": SWIFT,
    "orbit": ORBIT,
}


def list_opts() -> list[tuple[str | None, Sequence[cfg.Opt]]]:
    """All options by group, for oslo.config's sample generator."""
    return list(GROUPS.items())


def new() -> ConfigOpts:
    """A parser that knows every option and has read nothing yet."""
    conf = cfg.ConfigOpts()
    for group, options in GROUPS.items():
        conf.register_opts(options, group=group)
    return conf


def load(argv: Sequence[str] | None = None, prog: str | None = None) -> ConfigOpts:
    """Read the configuration named by ``--config-file`` in `argv` (default ``/etc/lunr/lunr.conf``).

    Raises:
        errors.ConfigError: the file can't be read, or a value in it can't be used.
    """
    conf = new()
    try:
        conf(args=argv, project="lunr", prog=prog, version=__version__, default_config_files=None)
        for group, options in GROUPS.items():
            for option in options:  # oslo.config checks a value only when it is read
                _ = conf[option.dest] if group is None else conf[group][option.dest]
    except (cfg.Error, ValueError) as error:
        raise errors.ConfigError(reason=str(error)) from error
    return conf
