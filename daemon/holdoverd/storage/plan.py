"""What runs as storage on this host, decided before anything is touched. No I/O.

SeaweedFS is four servers in one process: a master, a volume server, a filer, and the S3 gateway that
alone is meant for others. The first three ask nobody for a password, over TCP on loopback and over
Unix sockets with fixed names in ``/tmp``. So it runs where neither can be reached: in a network of
its own and with a ``/tmp`` of its own, and S3 comes out through one Unix socket in a folder that
only its user may enter. Where the kernel grants no such walls the ports are any that were free, on
loopback, and whoever starts it says so.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
GIB = 1 << 30

# On a small disk, volumes of SeaweedFS's usual 30 GB would never fill up and never be vacuumed.
MAX_VOLUME_MIB = 1024
MIN_VOLUME_MIB = 64
SPARE_VOLUMES = 16  # a bucket begins with seven, however little is in it

SIDE_PORTS = (
    "master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port",
    "filer.port.grpc", "s3.port", "s3.port.grpc",
)  # fmt: skip
# SeaweedFS's own. In a network of their own they meet nobody.
WALLED_PORTS = (9333, 19333, 8080, 18080, 8888, 18888, 8333, 18333)

DOOR_FILE = "door.json"
"""Beside the sockets of `holdover up`: {"endpoint", "keys"}, the address and the keys' file."""

READY_WITHIN_S = 60.0
"""What a start may take: three seconds usually, twenty after a power cut, more on a slow disk."""


@dataclass(frozen=True)
class StoragePlan:
    """Where storage keeps what it has, and which program runs.

    `data` and `sockets` are folders of its own, 0700; `identities` the file that tells it who may
    do what. `ports` follow `SIDE_PORTS`. `disk_bytes` is the size of the disk that `data` is on.
    """

    program: Path
    data: Path
    sockets: Path
    identities: Path
    disk_bytes: int
    ports: Sequence[int] = WALLED_PORTS

    @property
    def s3_socket(self) -> Path:
        return self.sockets / "s3.sock"

    @property
    def volume_mib(self) -> int:
        """How large a volume may become: a sixty-fourth of the disk, within bounds."""
        return max(MIN_VOLUME_MIB, min(MAX_VOLUME_MIB, self.disk_bytes // MIB // 64))

    @property
    def reserve_mib(self) -> int:
        """What is left free on the disk for others, for the catalogue above all."""
        return min(1024, self.disk_bytes // MIB // 20)

    def command(self) -> list[str]:
        """The argument vector. It holds no secret."""
        volumes = self.disk_bytes // MIB // self.volume_mib + SPARE_VOLUMES
        return [
            str(self.program),
            "-logtostderr",
            "server",
            f"-dir={self.data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            *(f"-{name}={port}" for name, port in zip(SIDE_PORTS, self.ports, strict=True)),
            "-master.telemetry=false",
            f"-master.volumeSizeLimitMB={self.volume_mib}",
            # There is nobody to vote with: ten seconds, the default, would only delay each start.
            "-master.electionTimeout=1s",
            f"-volume.max={volumes}",
            f"-volume.minFreeSpace={self.reserve_mib}MiB",
            "-volume.preStopSeconds=0",
            "-filer",
            f"-filer.localSocket={self.sockets / 'filer.sock'}",
            "-filer.disableDirListing",
            "-filer.exposeDirectoryData=false",
            "-s3",
            f"-s3.localSocket={self.s3_socket}",
            f"-s3.config={self.identities}",
            "-s3.iam=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.allowDeleteBucketNotEmpty=false",
            "-s3.autoCreateBucket=false",
        ]


def identities(access_key: str, secret_key: str) -> str:
    """SeaweedFS's list of who may do what: the daemon alone, and nobody without a signature."""
    return json.dumps(
        {
            "identities": [
                {
                    "name": "holdover",
                    "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
                    "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                }
            ]
        }
    )
