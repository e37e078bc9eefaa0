"""OpenStack Swift with its s3api as four ordinary processes on plain directories."""

import os
import pwd
import secrets
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.stores.process import free_ports, stop, wait_for

ACCESS_KEY = "test:tester"

_RINGS = """
import sys
from swift.common.ring import RingBuilder
folder, *ports = sys.argv[1:]
for name, port in zip(("account", "container", "object"), ports):
    builder = RingBuilder(part_power=2, replicas=1, min_part_hours=0)
    builder.add_dev({"id": 0, "region": 1, "zone": 1, "weight": 1.0, "ip": "127.0.0.1",
                     "port": int(port), "device": "disk", "meta": ""})
    builder.rebalance()
    builder.get_ring().save(f"{folder}/{name}.ring.gz")
"""

# The defaults are for a data center: half a second to connect, one second to update a listing
# (after that it lags until a daemon that does not run here), ten errors and a server is shunned.
_DEFAULT = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
swift_dir = {root}
devices = {root}/devices
mount_check = false
workers = 0
disable_fallocate = true
fallocate_reserve = 0
log_level = WARNING
log_udp_host = 127.0.0.1
log_udp_port = {log_port}
bind_timeout = 10
"""

_STORAGE = """
[pipeline:main]
pipeline = healthcheck {kind}-server

[filter:healthcheck]
use = egg:swift#healthcheck

[app:{kind}-server]
use = egg:swift#{kind}
conn_timeout = 30
node_timeout = 60
container_update_timeout = 60
replication_server = false
"""

_PROXY = """
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck listing_formats s3api tempauth copy slo proxy-server

[filter:catch_errors]
use = egg:swift#catch_errors

[filter:gatekeeper]
use = egg:swift#gatekeeper

[filter:healthcheck]
use = egg:swift#healthcheck

[filter:listing_formats]
use = egg:swift#listing_formats

[filter:s3api]
use = egg:swift#s3api
location = us-east-1
s3_acl = false

[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret} .admin

[filter:copy]
use = egg:swift#copy

[filter:slo]
use = egg:swift#slo

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
conn_timeout = 30
node_timeout = 60
error_suppression_limit = 1000000
"""

_MODULES = {
    "account": "swift.account.server",
    "container": "swift.container.server",
    "object": "swift.obj.server",
    "proxy": "swift.proxy.server",
}


@contextmanager
def swift(root: Path, python: Path) -> Iterator[tuple[str, str, str]]:
    """Run Swift for the time of the block.

    Args:
        root: An empty folder, on a file system with user xattrs, for all that the servers keep.
        python: The interpreter of an environment in which swift is installed.

    Yields:
        The endpoint's URL, the access key, the secret key.

    Raises:
        RuntimeError: A server ended or did not answer in time; its log is in the message.
    """
    root = root.absolute()
    (root / "devices" / "disk").mkdir(parents=True)
    secret = secrets.token_hex(16)
    user = pwd.getpwuid(os.getuid()).pw_name
    ports = dict(zip(_MODULES, free_ports(len(_MODULES)), strict=True))
    with ExitStack() as stack:
        # Swift always sends its log by UDP when there is no /dev/log: let it come here, unread.
        sink = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sink.bind(("127.0.0.1", 0))
        (root / "swift.conf").write_text(
            f"[swift-hash]\nswift_hash_path_prefix = p{secrets.token_hex(4)}\n"
            f"swift_hash_path_suffix = s{secrets.token_hex(4)}\n"
        )
        for kind, port in ports.items():
            body = _PROXY.format(secret=secret) if kind == "proxy" else _STORAGE.format(kind=kind)
            head = _DEFAULT.format(port=port, user=user, root=root, log_port=sink.getsockname()[1])
            (root / f"{kind}-server.conf").write_text(head + body)
        rings = [str(ports[kind]) for kind in ("account", "container", "object")]
        subprocess.run([str(python), "-c", _RINGS, str(root), *rings], check=True)
        processes = {}
        for kind, module in _MODULES.items():
            log = stack.enter_context((root / f"{kind}.log").open("wb"))
            start = f"import sys; from {module} import main; sys.exit(main())"
            processes[kind] = subprocess.Popen(
                [str(python), "-c", start, str(root / f"{kind}-server.conf"), "--verbose"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            stack.callback(stop, processes[kind])
        for kind, process in processes.items():
            wait_for(process, ports[kind], root / f"{kind}.log")
        yield f"http://127.0.0.1:{ports['proxy']}", ACCESS_KEY, secret
