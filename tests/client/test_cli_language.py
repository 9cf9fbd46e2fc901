"""The commands for language models: specifications, samples, reports, downloads, Ctrl-C."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from stillhouse.common.v1 import language_pb2
from stillhouse.gateway.v1 import datasets_pb2, jobs_pb2, models_pb2
from stillhouse_client import Client
from stillhouse_client.commands import training_flags
from stillhouse_client.errors import InvalidRequest, ServerFault
from stillhouse_client.model_files import check_name

from tests.client import cli, fake_language
from tests.client.fake_gateway import World

Capture = pytest.CaptureFixture[str]
LANGUAGE = ("distill", "language", "--dataset", "notes", "--student", "tiny")
PRUNE = ("distill", "prune", "--dataset", "notes", "--model", "big")
SHIFT = ("distill", "tuneshift", "--base", "b", "--tuned", "t", "--target", "big")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def seeds(tmp_path: Path) -> str:
    path = tmp_path / "seeds.txt"
    path.write_text("# mine\nWhat is {word}?\n\nWhat is {word}?\nWhere does it live?\n")
    return str(path)


def test_a_language_job_is_what_its_flags_say(capsys: Capture, gateway: World) -> None:
    gateway.job_kind = "language"
    flags = (
        *("--teacher", "big", "--mode", "sequence", "--keep-layers", "0-29:2", "--lora"),
        *("--rank", "8", "--steps", "40", "--learning-rate", "1e-3", "--batch", "4"),
        *("--sequence-length", "128", "--bytes-per-token", "30", "--loss", "skewed-kl"),
        *("--temperature", "2", "--verifier", r"regex:^\d+$", "--evaluate", "stamps"),
        *("--evaluate", "texts", "--replay", "wiki", "--chat", "--model", "mine", "--seed", "7"),
        *("--precision", "float32", "--answers", "3", "--max-tokens", "64"),
    )
    result = cli.run(capsys, *LANGUAGE, *flags, "--address", gateway.address)
    assert result.code == 0, result.err
    sent = gateway.last(jobs_pb2.CreateDistillationJobRequest).job.language
    assert sent == jobs_pb2.LanguageJobSpec(
        dataset="projects/default/datasets/notes",
        teacher="projects/default/models/big",
        student="projects/default/models/tiny",
        keep_layers=range(0, 30, 2),
        model_id="mine",
        mode=jobs_pb2.LANGUAGE_MODE_SEQUENCE_LEVEL,
        training=language_pb2.LanguageTraining(
            lora=language_pb2.Lora(rank=8),
            max_steps=40,
            batch_sequences=4,
            learning_rate=1e-3,
            seed=7,
            precision="float32",
            loss=language_pb2.LANGUAGE_LOSS_SKEWED_KL,
            temperature=2,
            sequence_length=128,
        ),
        bytes_per_token=30,
        sampling=language_pb2.Sampling(max_tokens=64, seed=7),
        answers_per_prompt=3,
        verifier=language_pb2.Verifier(regex=language_pb2.RegexVerifier(pattern=r"^\d+$")),
        evaluation_datasets=[f"projects/default/datasets/{d}" for d in ("stamps", "texts")],
        replay_dataset="projects/default/datasets/wiki",
        chat=True,
    )
    assert "step 5: loss 2.500, held-out cross entropy 3.100" in result.err
    assert "right choices of stamps" in result.out
    assert "-0.300 [-0.350, -0.250]" in result.out
    assert "stillhouse models download tiny DIR" in result.err


def test_a_tuneshift_job_is_what_its_flags_say(
    capsys: Capture, gateway: World, seeds: str, tmp_path: Path
) -> None:
    gateway.job_kind = "tuneshift"
    words = tmp_path / "words.txt"
    words.write_text("heron\nplover\n")
    flags = (
        *("--seeds", seeds, "--words", str(words), "--generator", "g", "--off-domain", "general"),
        *("--rounds", "3", "--prompts-per-round", "64", "--tau", "1.3", "--by-difference"),
        *("--confident-share", "0.8", "--max-perplexity", "50", "--target-examples", "200"),
        *("--token-budget", "100000", "--verifier", "exact", "--evaluate", "questions"),
        *("--replay", "wiki", "--review", "--ablations", "--arm", "no_filter", "--tau-arms"),
        *("--style-model", "style", "--training-seeds", "3", "--model", "mine", "--seed", "5"),
        "--chat",
    )
    result = cli.run(capsys, *SHIFT, *flags, "--address", gateway.address)
    assert result.code == 0, result.err
    sent = gateway.last(jobs_pb2.CreateDistillationJobRequest).job.tuneshift
    assert sent == jobs_pb2.TuneShiftJobSpec(
        base="projects/default/models/b",
        tuned="projects/default/models/t",
        target="projects/default/models/big",
        seed_prompts=["What is {word}?", "Where does it live?"],
        words=["heron", "plover"],
        generator="projects/default/models/g",
        off_domain_dataset="projects/default/datasets/general",
        rounds=3,
        prompts_per_round=64,
        target_examples=200,
        token_budget=100_000,
        filter=jobs_pb2.TuneShiftFilter(
            by_difference=True, tau=1.3, confident_share=0.8, max_perplexity=50
        ),
        verifier=language_pb2.Verifier(exact_match=language_pb2.ExactMatchVerifier()),
        training=language_pb2.LanguageTraining(seed=5),
        replay_dataset="projects/default/datasets/wiki",
        evaluation_datasets=["projects/default/datasets/questions"],
        model_id="mine",
        review=True,
        ablations=True,
        style_model="projects/default/models/style",
        training_seeds=3,
        seed=5,
        tau_arms=True,
        arms=["no_filter"],
        chat=True,
    )
    for text in (
        "no filter",
        "tau 1.25",
        "0.600 [0.550, 0.650]",
        "58 of 90",
        "1.1: 80, 1.5: 60",
        "0.120 [0.040, 0.200]",
        "120 of 160 groups",
    ):
        assert text in result.out


def test_a_prune_job_is_what_its_flags_say(capsys: Capture, gateway: World) -> None:
    gateway.job_kind = "prune"
    flags = (
        *("--non-embedding-share", "0.5", "--axes", "width", "--calibration-sequences", "64"),
        *("--candidates", "3", "--ranking-steps", "20", "--controls", "--training-seeds", "2"),
        *("--bytes-per-token", "30", "--steps", "200", "--seed", "7", "--evaluate", "stamps"),
        *("--verifier", "numeric", "--max-tokens", "64", "--model-id", "small"),
        *("--correct-teacher", "--rounds", "2"),
    )
    result = cli.run(capsys, *PRUNE, *flags, "--address", gateway.address)
    assert result.code == 0, result.err
    sent = gateway.last(jobs_pb2.CreateDistillationJobRequest).job.prune
    assert sent == jobs_pb2.PruneJobSpec(
        dataset="projects/default/datasets/notes",
        model="projects/default/models/big",
        model_id="small",
        non_embedding_share=0.5,
        axes=jobs_pb2.PRUNE_AXES_WIDTH,
        training=language_pb2.LanguageTraining(max_steps=200, seed=7),
        bytes_per_token=30,
        calibration_sequences=64,
        candidates=3,
        ranking_steps=20,
        controls=True,
        training_seeds=2,
        evaluation_datasets=["projects/default/datasets/stamps"],
        verifier=language_pb2.Verifier(numeric=language_pb2.NumericVerifier()),
        sampling=language_pb2.Sampling(max_tokens=64, seed=7),
        correct_teacher=True,
        rounds=2,
    )
    for text in (
        "notes, big",
        "non embedding share 0.5",
        "48.8% stay",
        "70.5%",
        "3.100 [3.050, 3.150]",
        "11.25 ms (the whole model 20.5 ms)",
        "128 tokens, float32, abacus, 2 threads",
        "60,001",
        "taken",
        "2.800 [2.750, 2.850]",
        "the cut before",
        "without distillation",
        "full model",
        "-0.600 [-0.650, -0.550]",
    ):
        assert text in result.out
    assert "step 5: loss 2.500" in result.err
    assert "stillhouse models download tiny DIR" in result.err


def test_a_prune_job_is_estimated_and_told_as_json(capsys: Capture, gateway: World) -> None:
    gateway.job_kind = "prune"
    sized = (*PRUNE, "--max-parameters", "60000000", "--address", gateway.address)
    cost = cli.run(capsys, *sized, "--dry-run")
    assert "records" in cost.out
    assert not [c for c in gateway.calls if isinstance(c, jobs_pb2.CreateDistillationJobRequest)]
    made = cli.run(capsys, *sized, "--json")
    assert made.json["model"] == fake_language.TINY
    sent = gateway.last(jobs_pb2.CreateDistillationJobRequest).job.prune
    assert sent.WhichOneof("size") == "max_parameters"
    assert sent.axes == jobs_pb2.PRUNE_AXES_BOTH
    timed = (*PRUNE, "--max-latency-ms", "12.5", "--address", gateway.address)
    timed += ("--intermediate-states", "3")
    assert "measured on" in cli.run(capsys, *timed).out
    sent = gateway.last(jobs_pb2.CreateDistillationJobRequest).job.prune
    assert (sent.max_latency_ms, sent.training.intermediate_states) == (12.5, 3)
    with Client(gateway.address) as client:
        job = client.jobs.create(jobs_pb2.PruneJobSpec(max_bytes=1 << 20))
    assert job.WhichOneof("spec") == "prune"
    sent = gateway.last(jobs_pb2.CreateDistillationJobRequest).job.prune
    assert sent.max_bytes == 1 << 20


@pytest.mark.parametrize(
    ("command", "code", "texts"),
    [
        ((*LANGUAGE,), 2, ("--mode stored needs a --teacher",)),
        ((*LANGUAGE, "--teacher", "t", "--mode", "supervised"), 2, ("has no teacher",)),
        ((*LANGUAGE, "--teacher", "t", "--keep-layers", "4-2"), 2, ("'4-2' are no layers",)),
        ((*LANGUAGE, "--teacher", "t", "--steps", "2", "--epochs", "1"), 2, ("exclude one",)),
        ((*LANGUAGE, "--teacher", "t", "--rank", "8"), 2, ("add --lora",)),
        ((*LANGUAGE, "--teacher", "t", "--verifier", "exec"), 2, ("'exec' is no verifier",)),
        ((*PRUNE,), 2, ("one size", "--non-embedding-share, --max-parameters")),
        ((*PRUNE, "--max-bytes", "9", "--max-parameters", "9"), 2, ("one size",)),
        ((*SHIFT, "--seeds", "seeds.txt", "--arm", "no_filter"), 2, ("add --ablations",)),
        ((*SHIFT, "--seeds", "empty.txt"), 2, ("empty.txt has no prompts", "one prompt")),
        ((*SHIFT, "--seeds", "latin.txt"), 2, ("latin.txt is not UTF-8 text",)),
        (("models", "show", "tinny"), 3, ("did you mean 'tiny'",)),
        (("models", "generate", "tinny", "--prompt", "a"), 3, ("did you mean 'tiny'",)),
        (("models", "download", "tinny", "there"), 3, ("did you mean 'tiny'",)),
        (("jobs", "samples", "job-2"), 3, ("did you mean 'job-1'",)),
        (("jobs", "samples", "job-1", "--finish"), 1, ("does not wait for a review",)),
        (("jobs", "samples", "job-1", "--drop", "1-1", "--keep", "1-1"), 2, ("both dropped",)),
        (("jobs", "samples", "job-1", "--drop", "-", "--keep", "-"), 2, ("read once",)),
        (("jobs", "report", "job-1"), 1, ("has no report",)),
    ],
)
@pytest.mark.usefixtures("seeds")
def test_errors_say_what_to_do(
    capsys: Capture,
    gateway: World,
    tmp_path: Path,
    command: tuple[str, ...],
    code: int,
    texts: tuple[str, ...],
) -> None:
    (tmp_path / "empty.txt").write_text("# nothing yet\n\n")
    (tmp_path / "latin.txt").write_bytes("Häher".encode("latin-1"))
    result = cli.run(capsys, *command, "--address", gateway.address)
    assert result.code == code, result.err
    assert result.out == ""
    for text in texts:
        assert text in result.err


@pytest.mark.parametrize(
    ("flag", "right"),
    [("--los", "--loss"), ("--keep-layer", "--keep-layers"), ("--moed", "--mode")],
)
def test_a_wrong_flag_is_met_with_the_right_one(capsys: Capture, flag: str, right: str) -> None:
    result = cli.run(capsys, *LANGUAGE, flag, "x")
    assert result.code == 2
    assert right in result.err


def test_shared_flags_stay_where_they_were_in_other_commands(capsys: Capture) -> None:
    assert "How the command runs" in cli.run(capsys, "distill", "language", "--help").out
    assert "How the command runs" not in cli.run(capsys, "jobs", "list", "--help").out


def test_ctrl_c_leaves_the_job_running(capsys: Capture, gateway: World) -> None:
    gateway.job_kind, gateway.interrupts = "language", True
    command = (*LANGUAGE, "--teacher", "big")
    for arguments in (command, ("jobs", "watch", "job-1")):
        result = cli.run(capsys, *arguments, "--address", gateway.address)
        assert result.code == 130
        assert "the job goes on; see it again with `stillhouse jobs watch job-1`" in result.err
        assert "Traceback" not in result.err


def test_a_job_in_review_says_what_to_do(capsys: Capture, gateway: World) -> None:
    gateway.job_kind, gateway.in_review = "tuneshift", True
    watched = cli.run(capsys, "jobs", "watch", "job-1", "--address", gateway.address)
    assert "look with `stillhouse jobs samples job-1`" in watched.err
    command = ("jobs", "samples", "job-1", "--drop", "1-1", "--drop", "1-3", "--keep", "1-2")
    result = cli.run(capsys, *command, "--address", gateway.address)
    assert "1 kept, 0 filtered, 2 dropped, 0 restored" in result.out
    sent = gateway.last(jobs_pb2.ReviewJobSamplesRequest)
    assert ([*sent.drop_ids], [*sent.keep_ids], sent.finish) == (["1-1", "1-3"], ["1-2"], False)
    assert sent.request_id


def test_ids_come_from_stdin(
    capsys: Capture, gateway: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.in_review = True
    monkeypatch.setattr("sys.stdin", io.StringIO("1-1\n1-2 1-3\n"))
    command = ("jobs", "samples", "job-1", "--drop", "-", "--finish", "--json")
    result = cli.run(capsys, *command, "--address", gateway.address)
    assert result.json["state_counts"]["DROPPED"] == 3
    sent = gateway.last(jobs_pb2.ReviewJobSamplesRequest)
    assert ([*sent.drop_ids], sent.finish) == (["1-1", "1-2", "1-3"], True)


def test_samples_are_cut_to_the_terminal_and_steer_nothing(capsys: Capture, gateway: World) -> None:
    result = cli.run(capsys, "jobs", "samples", "job-1", "--address", gateway.address)
    assert "A heron. It stands." in result.out
    assert "+1.10" in result.out
    assert "[bold]" in result.out
    assert "\x1b" not in result.out
    assert max(map(len, result.out.splitlines())) <= 200
    assert "1 kept, 1 filtered" in result.out
    only = ("jobs", "samples", "job-1", "--state", "filtered", "--json")
    kept = cli.run(capsys, *only, "--address", gateway.address).json
    assert [sample["sample_id"] for sample in kept["samples"]] == ["1-2"]


def test_text_datasets_are_detected(capsys: Capture, gateway: World, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.jsonl").write_text('{"text": "hello"}\n')
    result = cli.run(capsys, "datasets", "add", "notes", "--address", gateway.address)
    assert "notes holds texts" in result.err
    assert "9 prompt" in result.out
    assert gateway.last(datasets_pb2.CreateDatasetRequest).kind == datasets_pb2.DATASET_KIND_TEXTS
    said = ("datasets", "add", "file:///a.parquet", "--kind", "texts", "--name", "said")
    cli.run(capsys, *said, "--address", gateway.address)
    assert gateway.last(datasets_pb2.CreateDatasetRequest).kind == datasets_pb2.DATASET_KIND_TEXTS
    shown = cli.run(capsys, "datasets", "list", "--address", gateway.address)
    assert "texts" in shown.out


def test_generated_text_comes_whole_and_steers_nothing(capsys: Capture, gateway: World) -> None:
    command = ("models", "generate", "tiny", "--prompt", "Say", "--chat", "--temperature", "0.7")
    result = cli.run(capsys, *command, "--address", gateway.address)
    assert result.out == "The sky [31mis blue.\n"
    assert "5 tokens, cut off" in result.err
    sent = gateway.last(models_pb2.GenerateTextRequest)
    assert sent.prompt.chat.messages[0].role == "user"
    assert sent.sampling.temperature == 0.7


def test_a_download_goes_on_where_it_broke_off(
    capsys: Capture, gateway: World, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes(b"{}")
    (folder / "model.safetensors").write_bytes(b"half")
    command = ("models", "download", "tiny", str(folder), "--json")
    result = cli.run(capsys, *command, "--address", gateway.address)
    assert result.json["kept"] == ["adapter_config.json"]
    assert (folder / "model.safetensors").read_bytes() == fake_language.WEIGHTS
    assert sorted(p.name for p in folder.iterdir()) == ["adapter_config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", ".hidden", "", "a\nb", "C:x"])
def test_a_file_name_cannot_leave_the_folder(
    capsys: Capture, gateway: World, tmp_path: Path, name: str
) -> None:
    with pytest.raises(ServerFault):
        check_name(name)
    gateway.model_files[name] = b"x"
    command = ("models", "download", "tiny", str(tmp_path / "model"))
    assert cli.run(capsys, *command, "--address", gateway.address).code == 1
    assert not (tmp_path / "model").exists()


def test_the_blocking_client_has_language_models_too(gateway: World, tmp_path: Path) -> None:
    with Client(gateway.address) as client:
        events = list(client.models.generate("tiny", "The sky"))
        assert events[-1].generation.token_count == 5
        assert client.models.download("tiny", tmp_path).base == "big"
        assert len(client.jobs.samples("job-1").samples) == 2


@pytest.mark.parametrize(
    ("text", "found"),
    [("", []), ("0-4:2", [0, 2, 4]), ("3,1,2-3", [1, 2, 3]), (" 7 ", [7])],
)
def test_layers_are_read(text: str, found: list[int]) -> None:
    assert training_flags.layers(text) == found


@pytest.mark.parametrize("text", ["a", "1-", "-1", "1-2:0", "99999", "1;2", "3-1"])
def test_odd_layers_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        training_flags.layers(text)
