"""README and documentation follow from the code: commands, flags, keys, links, numbers and index terms."""

import json
import re
import subprocess
import sys
from unittest.mock import patch

import numpy as np
import pytest
from absl import flags as absl_flags
from PIL import Image

from jdiff import cli
from jdiff.commands import flags
from jdiff.commands.flags import shipped_configs
from jdiff.config.keys import KEYS_FILE
from tests.docs.pages import GENERATED_PAGES, PAGES, ROOT, anchors, blocks, links, page_id, prose, shell_commands
from tests.interop import toys
from tests.running import jdiff, run_in_process, user_environment

COMMAND_FLAGS = set(re.findall(r"`--(\w+)`", (ROOT / "docs/reference/commands.md").read_text()))
# Flags of launchers, of tests and of third-party programs that pages name.
OTHER_FLAGS = {
    *("array", "at-a-time", "gpus", "gpus-per-node", "hosts", "image", "node", "nodes", "queue", "restarts", "runs"),
    *("service-account", "signal", "slices", "time", "tpus", "volume", "help", "quick", "logdir", "editable", "force"),
    *("numprocesses", "bind_all", "port", "zone", "lines", "requeue", "check"),
}
NUMBER = re.compile(r"([\d.,]+)( %)?[^|\n<]*?<!-- ([\w-]+): (.*?) -->")


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_named_flags_and_config_keys_exist(page):
    """In inline code: --flag of a command, config.section.key of a config."""
    sections = json.loads(KEYS_FILE.read_text())
    code = " ".join(re.findall(r"`([^`\n]+)`", prose(page)))
    for flag in re.findall(r"(?<![\w-])--([a-z][\w-]*)(?![\w.-])", code):
        assert flag in COMMAND_FLAGS | OTHER_FLAGS, f"--{flag}"
    for section, key in re.findall(r"\bconfig\.([a-z_]+)\.([a-z_]+)\b(?!\()", code):
        assert key in sections.get(section, ()), f"config.{section}.{key}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_and_anchors_exist(page):
    for path, anchor in links(page):
        target = page.parent / path if path else page
        assert target.exists(), f"{path}#{anchor}"
        if anchor:
            assert anchor in anchors(target), f"{path}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_named_programs_of_the_repository_exist(page):
    """`make TARGET`, `python -m benchmarks NAME`, and other modules and scripts of the repository."""
    text = page.read_text()
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) <= set(targets)
    benchmark_names = {path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py")}
    assert set(re.findall(r"python -m benchmarks ([a-z_]+)", text)) <= benchmark_names
    for module in re.findall(r"python -m ((?:tests|benchmarks|docs)[\w.]*)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    for script in re.findall(r"(?:python|sh|bash|sbatch) ((?:tests|benchmarks|docs|launch)/[\w./]+)", text):
        assert (ROOT / script).exists(), script


def jdiff_commands(page):
    """The jdiff commands of a page that run on a CPU machine."""
    for block in blocks(page):
        if block.language == "bash" and not block.needs:
            yield from (words for words in shell_commands(block) if words[0] == "jdiff")


@pytest.mark.parametrize("page", [page for page in PAGES if any(jdiff_commands(page))], ids=page_id)
def test_commands_and_their_configs_are_accepted(page, tmp_path):
    """Every flag and config key of every command; nothing is run."""
    for words in jdiff_commands(page):
        with patch.object(cli, "_run", lambda module, rest: "config" in absl_flags.FLAGS and flags.task()):
            result = run_in_process(*words[1:], cwd=tmp_path, check=False)
        assert result.returncode == 0, f"{' '.join(words)}\n{result.stderr}"


def test_generated_pages_and_the_list_of_config_keys_are_current():
    process = subprocess.run(
        [sys.executable, "-m", "docs.generate", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr


def test_website_is_built_without_a_warning(tmp_path):
    """MkDocs in strict mode: pages in the navigation, links, anchors."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={tmp_path / 'site'}"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "site" / "index.html").exists()


def test_numbers_of_pages_are_those_of_the_results():
    """A number before `<!-- FILE: CLAIM -->` is that claim's value in benchmarks/results/FILE.json, rounded."""
    count = 0
    for page in PAGES:
        for number, percent, file, text in NUMBER.findall(page.read_text()):
            rows = json.loads((ROOT / "benchmarks" / "results" / f"{file}.json").read_text())
            value = next(row["value"] for row in rows if row["text"] == text) * (100 if percent else 1)
            decimals = len(number.partition(".")[2])
            assert float(number.replace(",", "")) == round(value, decimals), f"{page_id(page)}: {number} of {text}"
            count += 1
    assert count >= 5


TERMS = """
gradient accumulation, microbatch, activation checkpointing, gradient checkpointing, remat, mixed precision, bfloat16,
fine-tuning, pretrained, resume, preemption, checkpoint, EMA, exponential moving average, post-hoc EMA, FSDP,
data parallel, tensor parallel, sharding, mesh, multi-host, multi-GPU, TPU pod, SLURM, Kubernetes,
classifier-free guidance, CFG, negative prompt, guidance scale, NFE, inference steps, sampler, solver, scheduler,
noise schedule, DDPM, DDIM, DPM-Solver++, UniPC, Heun, flow matching, min-SNR, timestep sampling, latent diffusion,
autoencoder, VAE, cross-attention, U-Net, zero-shot, retrieval, recall@, CLIP score, learning rate, warm-up,
weight decay, gradient clipping, AdamW, Adafactor, Muon, seed, reproducible, hyperparameter sweep, confidence interval,
ablation, in-loop evaluation, validation, TensorBoard, metrics.jsonl, out of memory, own images, custom dataset,
batch size, img/s, throughput, limitations, tutorial, API
"""


@pytest.mark.parametrize("term", [term.strip() for term in TERMS.split(",")])
def test_index_term_is_found(term):
    """The field's words for what jdiff does, in README or the hand-written pages, whatever the case."""
    text = " ".join(" ".join(page.read_text() for page in PAGES if not page_id(page).endswith(GENERATED_PAGES)).split())
    assert re.search(rf"(?<!\w){re.escape(term)}", text, re.IGNORECASE)


# Running all commands and examples.


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A directory with what the pages' commands read: captioned images, prompts, pretrained weights, trained runs."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "my_images").mkdir()
    generator = np.random.default_rng(0)
    for i in range(60):
        pixels = generator.integers(0, 256, (72, 72, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "my_images" / f"{i}.png")
        (folder / "my_images" / f"{i}.txt").write_text(f"picture {i % 7} of noise, the dog and the cat\n")
    (folder / "prompts.txt").write_text("a red circle\na blue star\n")
    toys.stable_diffusion(folder / "weights" / "stable-diffusion")
    toys.clip(folder / "weights" / "clip")
    for command in (
        "prepare --config=demo_clip",
        "train --config=demo_clip --workdir=runs/shapes_clip",
        "train --config=demo_t2i --workdir=runs/shapes",
    ):
        run(folder, ["jdiff", *command.split()])
    return folder


SMALL = {"--num": 4, "--config.train.steps": 2}


def tiny_command(words):
    """A command with the tiny variant of its config, and few images."""
    for word in words:
        name, _, value = word.partition("=")
        if name == "--config" and value in shipped_configs() and value != "spiral":
            word = f"--config={value}:tiny"
        if name in SMALL:
            word = f"{name}={SMALL[name]}"
        yield word


def run(folder, words):
    if words[0] == "jdiff":
        jdiff(*tiny_command(words[1:]), cwd=folder)
        return
    if words[0] == "python":
        words = [sys.executable, *words[1:]]
    process = subprocess.run(words, cwd=folder, env=user_environment(), capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, f"{' '.join(words)}\n{process.stdout[-2000:]}{process.stderr[-2000:]}"


def runnable(page):
    return [block for block in blocks(page) if block.language in ("bash", "python") and not block.needs]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=page_id)
def test_commands_and_examples_run_in_the_order_of_their_page(page, scratch):
    """Python blocks of a page share their names, but for those of extend.md, which change tables."""
    program = "import jdiff, matplotlib\nmatplotlib.use('agg')\n"
    for block in runnable(page):
        if block.title:
            (scratch / block.title).write_text(block.text)
        elif block.language == "bash":
            for words in shell_commands(block):
                run(scratch, words)
        else:
            is_standalone = page.stem == "extend"
            run(scratch, ["python", "-c", block.text if is_standalone else program + block.text])
            program += "" if is_standalone else block.text
