"""examples/llama2/dlc/submit.py with the real SDK's classes; only the service itself is played."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from alibabacloud_credentials.exceptions import CredentialException
from alibabacloud_pai_dlc20201203 import models
from Tea.exceptions import TeaException

from tests.pai.job_files import BODIES, DLC, load_submit
from tests.pai.test_job_bodies import FILLED

submit = load_submit()
SETTINGS = [word for name, value in FILLED.items() if name != "region" for word in ("--set", f"{name}={value}")]
BODY = str(DLC / "pretrain_ecs.json")


class Service:
    """PAI DLC: a job of two pods whose states and logs `course` has, one entry a poll; an exception there is raised."""

    def __init__(self, *course):
        self.course, self.asked, self.created = list(course), [], []

    def create_job(self, request):
        self.created.append(request.to_map())
        return SimpleNamespace(body=models.CreateJobResponseBody(job_id="dlc1"))

    def get_job(self, job_id, request):
        assert (job_id, type(request)) == ("dlc1", models.GetJobRequest)
        self.now = self.course.pop(0) if len(self.course) > 1 else self.course[0]  # an ended job stays as it is
        if isinstance(self.now, Exception):
            raise self.now
        pods = [models.PodItem(pod_id=f"dlc1-{name}", pod_uid=name) for name in self.now.get("logs", {})]
        return SimpleNamespace(body=models.GetJobResponseBody(status=self.now["status"], pods=pods))

    def get_pod_logs(self, job_id, pod_id, request):
        assert pod_id == f"dlc1-{request.pod_uid}"
        self.asked.append(request.start_time)
        return SimpleNamespace(body=models.GetPodLogsResponseBody(logs=self.now["logs"][request.pod_uid]))


@pytest.fixture
def served(monkeypatch):
    """Make submit.py talk to a Service; returns what starts it with a course of events."""

    def start(*course):
        service = Service(*course)
        monkeypatch.setattr(submit, "connect", lambda region: service)
        monkeypatch.setattr(submit.time, "sleep", lambda seconds: None)
        return service

    return start


def test_the_body_is_sent_as_it_stands_in_the_file(served, capsys):
    service = served()
    assert submit.main([BODY, "--region", "cn-wulanchabu", *SETTINGS]) == 0
    assert capsys.readouterr().out == "submitted as dlc1\n"
    (sent,) = service.created
    text = (DLC / "pretrain_ecs.json").read_text()
    for name, value in FILLED.items():
        text = text.replace(f"<{name}>", value)
    assert dict(submit.leaves(sent)).items() >= dict(submit.leaves(json.loads(text))).items()
    assert "oss://a.oss-cn-wulanchabu-internal.aliyuncs.com/b/" in text, "--region fills in <region>"


@pytest.mark.parametrize("name", BODIES)
def test_a_dry_run_prints_the_body_and_sends_nothing(name, monkeypatch, capsys):
    monkeypatch.setattr(submit, "connect", lambda region: pytest.fail("connected"))
    assert submit.main([str(DLC / f"{name}.json"), "--dry-run", "--region", "cn-wulanchabu", *SETTINGS]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["WorkspaceId"] == "12345" and not shown.err
    assert submit.main([str(DLC / f"{name}.json"), "--dry-run", *SETTINGS[2:]]) == 2
    assert "--set region=VALUE, --set workspace-id=VALUE" in capsys.readouterr().err


def test_what_cannot_be_sent_is_said(tmp_path, served, capsys):
    service = served()
    file = tmp_path / "job.json"
    for text, sentence in (
        ('{"UserComand": "true", "Envs": {"A": "b"}}', "CreateJob knows no UserComand;"),
        ('{"JobSpecs": "Worker"}', "the SDK cannot read it"),
        ("[]", "it is no JSON object"),
        (json.dumps({"UserCommand": "x" * 65_536}), "CreateJob takes 65536 at most"),
    ):
        file.write_text(text)
        assert submit.main([str(file), "--region", "cn-wulanchabu"]) == 2
        assert sentence in capsys.readouterr().err
    file.write_text("{")
    with pytest.raises(SystemExit, match="Expecting property name"):
        submit.main([str(file), "--region", "cn-wulanchabu"])
    with pytest.raises(SystemExit):
        submit.main([str(file), "--set", "image"])
    assert "--set image: NAME=VALUE" in capsys.readouterr().err and not service.created


def test_following_prints_each_line_once_and_ends_with_the_job(served, capsys):
    """The second window begins in the first; equal lines are not taken for one; a failed request is not the end; what
    comes after the end is printed."""
    service = served(
        {"status": "Queuing"},
        {"status": "Running", "logs": {"worker-0": ["a", "b", "b"], "worker-1": []}},
        TeaException({"code": "Throttling", "message": "later"}),
        {"status": "Running", "logs": {"worker-0": ["b", "b", "b", "c"], "worker-1": ["z"]}},
        {"status": "Succeeded", "logs": {"worker-0": ["b", "c"], "worker-1": ["z"]}},
        {"status": "Succeeded", "logs": {"worker-0": ["c", "d"], "worker-1": ["z"]}},
    )
    assert submit.main([BODY, "--region", "cn-wulanchabu", *SETTINGS, "--follow"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert [line[-1] for line in lines if line.startswith("dlc1-worker-0: ")] == ["a", "b", "b", "b", "c", "d"]
    assert lines.count("dlc1-worker-1: z") == 1 and lines[-1] == "dlc1-worker-0: d"
    assert [line for line in lines if line.startswith("==")] == ["== dlc1: Queuing", "== dlc1: Running", "== dlc1: Succeeded"]
    assert "asking for dlc1 failed, 1 of 10" in shown.err
    assert service.asked[:2] == [None, None] and all(service.asked[2:]), "from the second time on, only the new is asked for"


@pytest.mark.parametrize(
    "course", [[{"status": "Failed"}], [TeaException({"message": "gone"})], [CredentialException("expired")]]
)
def test_a_job_that_fails_or_cannot_be_followed_gives_status_1(course, served, capsys):
    """A job that goes on is not said to be none, whatever asking for it is refused with."""
    served(*course)
    assert submit.main([BODY, "--region", "cn-wulanchabu", *SETTINGS, "--follow"]) == 1
    shown = capsys.readouterr()
    assert "submitted as dlc1" in shown.out and "was not submitted" not in shown.err
    is_lost = isinstance(course[0], Exception)
    assert ("dlc1 is not followed any more" in shown.err) is ("failed, 10 of 10" in shown.err) is is_lost


def test_a_credential_that_expires_for_a_while_ends_nothing(served, capsys):
    served({"status": "Running"}, CredentialException("expired"), {"status": "Succeeded"})
    assert submit.main([BODY, "--region", "cn-wulanchabu", *SETTINGS, "--follow"]) == 0
    assert "asking for dlc1 failed, 1 of 10: expired" in capsys.readouterr().err


def test_without_credentials_nothing_is_sent_and_the_places_are_named(monkeypatch, tmp_path, capsys):
    """The SDK's own default chain, with nothing in any of its places."""
    for name in ("ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET", "ALIBABA_CLOUD_CREDENTIALS_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "true")
    assert submit.main([BODY, "--region", "cn-wulanchabu", *SETTINGS]) == 1
    assert "was not submitted: unable to load credentials" in capsys.readouterr().err
