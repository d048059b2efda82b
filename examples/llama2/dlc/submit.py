#!/usr/bin/env python3
"""Submit a job body of this folder to PAI DLC, with Alibaba Cloud's own SDK, and follow its log.

    pip install 'megatron-patch[dlc]'
    python submit.py pretrain_ecs.json --region cn-wulanchabu --set workspace-id=12345 --set image=... --dry-run
    python submit.py pretrain_ecs.json --region cn-wulanchabu --set workspace-id=12345 --set image=... --follow

`--set name=value` fills in a `<name>` of the body, and --region fills in `<region>`. `--dry-run` prints the body as it
would be sent and asks for no credentials; `pai dlc job submit --body-json @FILE` takes that body too.
Credentials come from the SDK's default chain: ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET of the
environment, OIDC, the profile of the aliyun CLI, or the RAM role of the ECS or DSW instance. This program reads and
stores none.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

PLACEHOLDER = re.compile(r"<([a-z][a-z0-9-]*)>")
MOST_BYTES = 65_536  # of all parameters of CreateJob together; source: the page "CreateJob"
ENDED = ("Succeeded", "Failed", "Stopped", "SucceededReserving", "FailedReserving")
PATIENCE = 10  # requests in a row that may fail while a job is followed


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of everything in a JSON value that holds nothing else: `JobSpecs[0].PodCount`, 2."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{index}]")
    else:
        yield path, value


def filled(value: Any, values: dict[str, str]) -> Any:
    """A JSON value with each `<name>` in its strings replaced where `values` has it."""
    if isinstance(value, str):
        return PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), value)
    if isinstance(value, list):
        return [filled(inner, values) for inner in value]
    if isinstance(value, dict):
        return {key: filled(inner, values) for key, inner in value.items()}
    return value


def faults(body: dict[str, Any]) -> list[str]:
    """What is wrong with a body, in sentences. The SDK drops keys that it does not know; here they are named."""
    from alibabacloud_pai_dlc20201203.models import CreateJobRequest

    if not isinstance(body, dict):
        return ["it is no JSON object, as a CreateJob body is"]
    try:
        kept = dict(leaves(CreateJobRequest().from_map(body).to_map()))
    except (AttributeError, TypeError) as error:  # from_map asks each value for what its type has
        return [f"the SDK cannot read it, an object, a list or a plain value stands in another's place: {error}"]
    found = []
    missing = sorted({name for _, value in leaves(body) if isinstance(value, str) for name in PLACEHOLDER.findall(value)})
    if missing:
        found.append("not filled in yet: " + ", ".join(f"--set {name}=VALUE" for name in missing))
    lost = [path for path, value in leaves(body) if path not in kept or kept[path] != value]
    if lost:
        found.append(f"CreateJob knows no {', '.join(lost)}; the spelling is that of the page CreateJob")
    size = len(json.dumps(body).encode())
    if size > MOST_BYTES:
        found.append(f"the body has {size} bytes; CreateJob takes {MOST_BYTES} at most")
    return found


def connect(region: str) -> Any:
    """A client for the region's public endpoint, with credentials from the SDK's default chain."""
    from alibabacloud_credentials.client import Client as Credentials
    from alibabacloud_pai_dlc20201203.client import Client
    from alibabacloud_tea_openapi.utils_models import Config

    return Client(Config(credential=Credentials(), region_id=region))


def fresh(before: list[str], now: list[str]) -> list[str]:
    """The lines of `now` that are not in `before`. Both are windows of one log, which may overlap."""
    for overlap in range(min(len(before), len(now)), 0, -1):
        if before[-overlap:] == now[:overlap]:
            return now[overlap:]
    return now


def print_logs(client: Any, job_id: str, pods: list[Any], windows: dict[str, list[str]], since: str | None) -> None:
    """Print what each pod has said and what is not printed yet.

    Args:
        windows: pod → its lines in the last answer; kept from call to call.
        since: the time (UTC) at which the new window of a pod begins, if it had one before.
    """
    from alibabacloud_pai_dlc20201203.models import GetPodLogsRequest

    for pod in pods:
        request = GetPodLogsRequest(pod_uid=pod.pod_uid, start_time=since if pod.pod_uid in windows else None)
        lines = client.get_pod_logs(job_id, pod.pod_id, request).body.logs or []
        for line in fresh(windows.get(pod.pod_uid, []), lines):
            print(f"{pod.pod_id}: {line}" if len(pods) > 1 else line, flush=True)
        windows[pod.pod_uid] = lines


def follow(client: Any, job_id: str, pause: float = 10) -> int:
    """Print the job's states and its pods' logs until it ends. 0 if it succeeded, else 1."""
    from alibabacloud_credentials.exceptions import CredentialException
    from alibabacloud_pai_dlc20201203.models import GetJobRequest
    from Tea.exceptions import TeaException

    status, windows, since, failures, rounds = "", {}, None, 0, 2
    while rounds and failures < PATIENCE:
        asked = datetime.now(UTC) - timedelta(minutes=2)  # the service collects lines with a delay
        try:
            job = client.get_job(job_id, GetJobRequest()).body
            if job.status != status:
                status = job.status
                print(f"== {job_id}: {status} {job.reason_message or ''}".rstrip(), flush=True)
            print_logs(client, job_id, [pod for pod in job.pods or [] if pod.pod_uid], windows, since)
            since, failures = asked.strftime("%Y-%m-%dT%H:%M:%SZ"), 0
            rounds -= status in ENDED  # once more after the end, for its last lines
        except (CredentialException, TeaException) as error:  # the job goes on, whatever this program is refused
            failures += 1
            print(f"== asking for {job_id} failed, {failures} of {PATIENCE}: {error}", file=sys.stderr, flush=True)
        time.sleep(pause if rounds else 0)
    if failures:
        print(f"== {job_id} is not followed any more; the console shows how it goes on.", file=sys.stderr, flush=True)
    return 0 if status.startswith("Succeeded") else 1


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("body", type=Path, help="a CreateJob body, such as pretrain_ecs.json")
    parser.add_argument("--region", default=os.environ.get("ALIBABA_CLOUD_REGION_ID"), help="such as cn-wulanchabu")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="fills in <NAME>; may be given often")
    parser.add_argument("--dry-run", action="store_true", help="print the body and send nothing")
    parser.add_argument("--follow", action="store_true", help="print the log until the job ends; the status is 0 if it succeeded")
    given = parser.parse_args(argv)
    given.values = dict(word.split("=", 1) if "=" in word else parser.error(f"--set {word}: NAME=VALUE") for word in given.set)
    if given.region:
        given.values.setdefault("region", given.region)
    elif not given.dry_run:
        parser.error("--region is needed: the region of the workspace, such as cn-wulanchabu")
    return given


def main(argv: list[str] | None = None) -> int:
    """Submit, print or follow; returns the exit status."""
    given = arguments(argv)
    try:
        body = filled(json.loads(given.body.read_text(encoding="utf-8")), given.values)
        wrong = faults(body)
    except (OSError, ValueError) as error:
        sys.exit(f"{given.body}: {error}")
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name} is not installed: pip install 'megatron-patch[dlc]'")
    if given.dry_run:
        print(json.dumps(body, indent=2, ensure_ascii=False))
    if wrong:
        print("\n".join(f"{given.body}: {sentence}." for sentence in wrong), file=sys.stderr)
        return 2
    return 0 if given.dry_run else submit(body, given)


def submit(body: dict[str, Any], given: argparse.Namespace) -> int:
    """Create the job and print its id; follow it if asked to."""
    from alibabacloud_credentials.exceptions import CredentialException
    from alibabacloud_pai_dlc20201203.models import CreateJobRequest
    from Tea.exceptions import TeaException

    job_id = None
    try:
        client = connect(given.region)
        job_id = client.create_job(CreateJobRequest().from_map(body)).body.job_id
        print(f"submitted as {job_id}", flush=True)
        return follow(client, job_id) if given.follow else 0
    except (CredentialException, TeaException) as error:
        print(f"{given.body} was {f'submitted as {job_id}' if job_id else 'not submitted'}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{job_id} goes on; `pai dlc job` or the console stops it." if job_id else "interrupted.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
