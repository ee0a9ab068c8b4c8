"""Answers on the page with what they scored: the file's own numbers at the file's own answers."""

from __future__ import annotations

import json

import lxml.html
import pytest
from seen import page
from synthetic_ppo import ROWS, write_ppo_run
from synthetic_run import XSS, write_lines

from evaluation.report.load import load_run
from evaluation.report.samples_section import samples


def drawn_lines(prompts=5):
    return [
        {
            "prompt_id": i, "policy": policy, "prompt": [{"role": "user", "content": f"question {i}"}],
            "response": XSS if (i, policy) == (1, "dpo") else f"{policy} drew {i}", "tokens": 11 + i, "eos": i != 2,
            "ids": [1], "kl": 0.0 if policy == "sft" else 10 * at + i - 3.25, "score": at + i / 10,
            "score_heldout": -at - i / 10 if policy != "base" else None, "logp": -9.0,
        }
        for i in range(prompts) for at, policy in enumerate(ROWS)
    ]  # fmt: skip


@pytest.fixture
def run_dir(tmp_path):
    write_ppo_run(tmp_path / "demo")
    write_lines(tmp_path / "demo" / "evaluation" / "sampled.jsonl", drawn_lines())
    return tmp_path / "demo"


def shown_in(html):
    """(prompt, policy) to what stands at the sampled answer: its figures and its text."""
    found = {}
    for article in lxml.html.fromstring(html).get_element_by_id("samples").find_class("sample"):
        prompt = article.find("h3").text_content().split()[1]
        for answer in article.xpath(".//details//div[@class='answer']"):
            policy, told = (" ".join(answer.find(path).text_content().split()) for path in ("p/strong", "p/span"))
            found[prompt, policy] = told, answer.find("pre").text_content()
    return found


def test_every_sampled_answer_stands_with_its_own_scores(run_dir):
    """Of the three prompts that were answered greedily too; each number belongs to that answer and to no other."""
    found = shown_in(page(run_dir))
    expected = {(str(line["prompt_id"]), line["policy"]): line for line in drawn_lines(3)}
    assert set(found) == set(expected) and len(found) == 12
    for key, line in expected.items():
        told = [f"score {line['score']:.2f}" if line["score"] else "score 0"]
        if line["score_heldout"] is not None:
            told.append(f"held-out score {line['score_heldout']:.2f}")
        if key[1] != "sft":
            told.append(f"{line['kl']:.1f} nats from sft")
        assert found[key] == (", ".join(told), line["response"]), key


def test_the_page_stays_harmless_and_says_which_were_cut_off(run_dir):
    html = page(run_dir)
    section = lxml.html.fromstring(html).get_element_by_id("samples")
    assert XSS not in html and not section.xpath(".//script")
    assert section.text_content().count("13 tokens, cut off: did not end by itself") == 4
    assert "may be negative; their mean is the KL" in " ".join(section.text_content().split())


def test_without_sampled_answers_nothing_is_said_of_them(run_dir):
    (run_dir / "evaluation" / "sampled.jsonl").unlink()
    assert load_run(run_dir).gaps == () and shown_in(page(run_dir)) == {}
    assert "sampled answers" not in lxml.html.fromstring(page(run_dir)).get_element_by_id("samples").text_content()


def test_without_greedy_answers_the_sampled_ones_are_read(run_dir):
    (run_dir / "evaluation" / "answers.jsonl").write_text("")
    found = samples(load_run(run_dir), limit=4)
    assert [one.prompt_id for one in found] == ["0", "1", "2", "3"] and all(one.answers == () for one in found)
    assert [given.drawn.policy for given in found[0].drawn] == ["base", "sft", "dpo", "ppo"]


def test_another_prompt_under_the_same_number_is_not_mixed_in(run_dir):
    lines = [{**line, "prompt": [{"role": "user", "content": "elsewhere"}]} for line in drawn_lines(1)]
    write_lines(run_dir / "evaluation" / "sampled.jsonl", lines)
    assert shown_in(page(run_dir)) == {}


@pytest.mark.parametrize("line", [{"policy": "ppo"}, {"policy": "ppo", "score": "high", "prompt": 3, "response": None}])
def test_damaged_lines_are_shown_as_far_as_they_go(run_dir, line):
    (run_dir / "evaluation" / "sampled.jsonl").write_text(json.dumps({"prompt_id": 0, **line}) + "\n{")
    assert "</html>" in page(run_dir)
