"""A Ray cluster reached through ``ray://``: a head, its client server and a client, each a process of its own."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from fastdss.corpus.run import score_dataset

from .fakes import FakeScorer, content_of, conversations, write_jsonl

pytest.importorskip("ray", reason="needs the [scale] extra")
pytest.importorskip("grpc", reason="needs ray[client]")
pytestmark = pytest.mark.slow  # a Ray cluster takes 20 s to start on two busy cores
ROOT = Path(__file__).parents[2]
THROUGH_THE_CLIENT = """
import sys
import ray.util.client
from fastdss.corpus.run import score_dataset
from tests.corpus.fakes import FakeScorer

score_dataset(sys.argv[1], sys.argv[2], FakeScorer(), engine="ray", workers=2, shard_rows=7)
assert ray.util.client.ray.is_connected()
"""


def free_ports(count):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in held]
    for server in held:
        server.close()
    return ports


def listens(port, process, seconds=200):
    """Returns once something does on the port."""
    for _ in range(seconds):
        with socket.socket() as knock:
            if knock.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, "the head ended"
        time.sleep(1)
    raise TimeoutError(f"nothing listens on {port}")


def test_a_cluster_reached_through_ray_client_gives_the_same_bytes(tmp_path):
    source, out = write_jsonl(tmp_path / "rows.jsonl", conversations(50)), tmp_path / "out"
    score_dataset(source, tmp_path / "here", FakeScorer(), shard_rows=7)
    port, client = free_ports(2)
    shared = {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    shared |= {"RAY_CLIENT_SERVER_STARTUP_TIMEOUT_S": "200", "RAY_raylet_start_wait_time_s": "200"}
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | shared
    head = [*(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2")]
    head += [f"--port={port}", f"--ray-client-server-port={client}", "--node-ip-address=127.0.0.1"]
    kept = tempfile.mkdtemp()  # not Ray's own folder, where later runs look for a cluster; sockets need a short path
    head += ["--include-dashboard=false", "--object-store-memory=100000000", f"--temp-dir={kept}"]
    cluster = subprocess.Popen(head, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    command = [sys.executable, "-c", THROUGH_THE_CLIENT, str(source), str(out)]
    through = environment | {"RAY_ADDRESS": f"ray://127.0.0.1:{client}"}
    try:
        listens(client, cluster)
        done = subprocess.run(command, cwd=ROOT, env=through, capture_output=True, text=True, timeout=300, check=False)
    finally:
        cluster.terminate()
        cluster.wait(timeout=60)
        shutil.rmtree(kept, ignore_errors=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert content_of(out) == content_of(tmp_path / "here")
