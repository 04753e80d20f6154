"""DSSSFTTrainer: TRL's options keep weights with their tokens, and data without scores trains as TRL trains it."""

# ruff: noqa: E402 - imports below would fail without the extra
import pytest
import torch
import transformers

from tests.support.tiny_models import plain_loss, scored_rows, tiny_model, tiny_tokenizer

trl = pytest.importorskip("trl", reason="needs the [train] extra")
datasets = pytest.importorskip("datasets", reason="needs the [train] extra")
peft = pytest.importorskip("peft", reason="needs the [train] extra")

from fastdss import DSSCollator
from fastdss.train.enable import enable_dss
from fastdss.train.prepare import prepare_dss_dataset
from fastdss.train.reference import reference_logprobs
from fastdss.train.sft_trainer import DSSSFTTrainer


def config(folder, **options):
    defaults = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "max_length": None,
    }
    return trl.SFTConfig(**(defaults | options))


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def scored():
    return datasets.Dataset.from_list(scored_rows())


@pytest.fixture(scope="module")
def prepared(scored, tokenizer):
    rows = prepare_dss_dataset(scored, tokenizer)
    logprobs = reference_logprobs(policy(), rows)
    return rows.add_column("ref_logprobs", [row.tolist() for row in logprobs])


def policy(**options):
    return tiny_model(dtype=torch.float32, vocab_size=320, **options)


def trainer(folder, dataset, tokenizer, *, kl="k2", ref_model=None, peft_config=None, **options):
    return DSSSFTTrainer(
        policy(),
        args=config(folder, **options),
        train_dataset=dataset,
        eval_dataset=dataset,
        processing_class=tokenizer,
        peft_config=peft_config,
        kl=kl,
        ref_model=ref_model,
    )


def direct(rows, model=None):
    """What evaluation should find, from the model itself on one padded batch."""
    model = enable_dss(model or policy())
    with torch.no_grad():
        return model(**DSSCollator(0)(list(rows)))


def test_scored_conversations_are_prepared_as_by_hand(tmp_path, scored, prepared, tokenizer):
    made = trainer(tmp_path, scored, tokenizer, ref_model=policy()).train_dataset
    for ours, expected in zip(made, prepared, strict=True):
        assert ours == {name: expected[name] for name in ours}
    assert {"input_ids", "labels", "token_weights"} <= set(made.column_names)


@torch.no_grad()
def told(rows):
    """Entropy and correctness of each row's labels, in float64 from the model's own logits."""
    model = policy().double()
    entropy, correct = [], []
    for row in rows:
        labels = torch.tensor(row["labels"])[1:]
        logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1][labels != -100]
        entropy.append(torch.special.entr(logits.softmax(-1)).sum(-1))
        correct.append(logits.argmax(-1) == labels[labels != -100])
    return entropy, correct


@pytest.mark.parametrize("ref", [{"ref_model": "column"}, {"kl": "reverse"}, {"kl_scale": 0.0}], ids=str)
def test_entropy_and_accuracy_are_those_that_trl_logs(tmp_path, prepared, tokenizer, ref):
    """The same rows without weights, trained by TRL: step for step, accumulated, and in evaluation."""
    ref = {"ref_model": policy() if "kl" in ref else None} | {k: v for k, v in ref.items() if k != "ref_model"}
    rows = prepared.map(lambda row: {"token_weights": [1.0] * len(row["labels"])})
    plain, histories = prepared.select_columns(["input_ids", "labels"]), []
    for cls, data, options in ((trl.SFTTrainer, plain, {}), (DSSSFTTrainer, rows, ref)):
        args = config(tmp_path, learning_rate=1e-2, gradient_accumulation_steps=2, per_device_train_batch_size=1,
                      eval_strategy="steps", eval_steps=1, max_steps=3, logging_steps=1)  # fmt: skip
        made = cls(policy(), args=args, train_dataset=data, eval_dataset=data, processing_class=tokenizer, **options)
        made.train()
        histories.append(made.state.log_history)
    for name in ("entropy", "mean_token_accuracy", "eval_entropy", "eval_mean_token_accuracy"):
        trls, ours = ([entry[name] for entry in history if name in entry] for history in histories)
        assert len(trls) == 3
        assert ours == pytest.approx(trls, rel=1e-4)
    assert len({entry["entropy"] for entry in histories[1] if "entropy" in entry}) == 3


@pytest.mark.parametrize("options", [{}, {"padding_free": True}, {"packing": True, "max_length": 256}])
def test_padding_flattening_and_packing_agree(tmp_path, prepared, tokenizer, options):
    made = trainer(tmp_path, prepared, tokenizer, max_steps=3, **options)
    assert isinstance(made.data_collator, DSSCollator)
    assert made.data_collator.padding_free == bool(options)
    if "packing" in options:
        assert len(made.train_dataset) < len(prepared)
        assert sum(map(len, made.train_dataset["seq_lengths"])) == len(prepared)
    expected, metrics = direct(prepared), made.evaluate()
    assert metrics["eval_ce"] == pytest.approx(expected.ce.item(), abs=1e-5)
    assert metrics["eval_kl"] == pytest.approx(expected.kl.item(), abs=1e-5)
    made.train()
    entry = made.state.log_history[-2]
    assert entry["ce"] + entry["kl"] == pytest.approx(entry["loss"], abs=1e-3)
    assert entry["entropy"] > 0
    assert 0 < entry["mean_token_accuracy"] < 1
    entropy, correct = told(prepared)
    if "packing" not in options:  # three steps of two rows are all of them once
        assert entry["num_tokens"] == sum(map(len, prepared["input_ids"]))
        pairs = [slice(start, start + 2) for start in range(0, len(prepared), 2)]
        in_batches = [torch.cat(entropy[pair]).mean().item() for pair in pairs]
        assert metrics["eval_entropy"] == pytest.approx(sum(in_batches) / len(in_batches), rel=1e-5)
        in_batches = [torch.cat(correct[pair]).float().mean().item() for pair in pairs]
        assert metrics["eval_mean_token_accuracy"] == pytest.approx(sum(in_batches) / len(in_batches), rel=1e-5)


def test_truncation_cuts_all_columns(tmp_path, prepared, tokenizer):
    made = trainer(tmp_path, prepared, tokenizer, max_length=60)
    assert max(map(len, made.train_dataset["input_ids"])) == 60
    for cut, whole in zip(made.train_dataset, prepared, strict=True):
        assert {name: whole[name][:60] for name in cut} == cut


@pytest.mark.parametrize("kl", ["k2", "forward"])
def test_lora_with_its_own_base_as_reference(tmp_path, scored, prepared, tokenizer, kl):
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
    made = trainer(tmp_path, scored, tokenizer, kl=kl, ref_model="adapter", peft_config=lora, learning_rate=1e-2)
    before = made.evaluate()
    assert before["eval_kl"] == pytest.approx(0, abs=1e-6)  # a fresh adapter changes nothing
    assert before["eval_ce"] == pytest.approx(direct(prepared).ce.item(), abs=1e-5)
    made.train()
    after = made.evaluate()
    assert after["eval_ce"] < before["eval_ce"]
    assert after["eval_kl"] > 0


def test_shuffling_keeps_rows_whole(tmp_path, prepared, tokenizer):
    made = trainer(tmp_path, prepared, tokenizer, shuffle_dataset=True)
    assert list(made.train_dataset) != list(prepared)
    key = lambda row: row["input_ids"]  # noqa: E731
    assert sorted(made.train_dataset, key=key) == sorted(prepared, key=key)


def test_data_without_scores_is_trls_own(tmp_path, tokenizer):
    rows = datasets.Dataset.from_list(
        [{"prompt": row["prompt"], "completion": row["response"]} for row in scored_rows()]
    )
    histories = []
    for cls in (trl.SFTTrainer, DSSSFTTrainer):
        made = cls(policy(), args=config(tmp_path), train_dataset=rows, processing_class=tokenizer)
        made.train()
        histories.append([e["loss"] for e in made.state.log_history if "loss" in e])
        assert "mean_token_accuracy" in made.state.log_history[0]
    assert histories[0] == histories[1]


def test_a_model_is_loaded_by_name(tmp_path, prepared, tokenizer):
    policy().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    args = config(tmp_path, model_init_kwargs={"dtype": torch.float32})
    made = DSSSFTTrainer(str(tmp_path / "model"), args=args, train_dataset=prepared, eval_dataset=prepared)
    assert made.evaluate()["eval_ce"] == pytest.approx(direct(prepared).ce.item(), abs=1e-5)


def test_a_name_is_loaded_as_trl_loads_it(tmp_path, prepared, tokenizer, monkeypatch):
    """A checkpoint in bf16 was trained in bf16, and of a pinned model another revision's tokenizer was taken."""
    policy().bfloat16().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    real, asked = transformers.AutoProcessor.from_pretrained, []

    def load(*args, **options):
        asked.append(options.get("revision"))
        return real(*args, **options)

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", load)
    args = config(tmp_path, model_init_kwargs={"revision": "v1"})
    made = DSSSFTTrainer(str(tmp_path / "model"), args=args, train_dataset=prepared)
    assert (made.model.dtype, asked) == (torch.float32, ["v1"])


def test_scored_rows_that_trl_would_not_prepare_are_refused(tmp_path, scored, tokenizer):
    skipped = {"dataset_kwargs": {"skip_prepare_dataset": True}}
    with pytest.raises(ValueError, match="these scored rows would train without shaping"):
        trainer(tmp_path, scored, tokenizer, **skipped)


class Typed(transformers.LlamaForCausalLM):
    def forward(self, input_ids=None, token_type_ids=None, **inputs):
        embedded = self.get_input_embeddings()(input_ids)
        if token_type_ids is not None:
            embedded = embedded + token_type_ids[..., None]
        return super().forward(inputs_embeds=embedded, **inputs)


def test_the_models_other_inputs_reach_it(tmp_path, prepared, tokenizer):
    """TRL keeps the columns of plain text alone; token types, images and what belongs to them were dropped unsaid."""
    typed = prepared.map(lambda row: {"token_type_ids": [1] * len(row["input_ids"])})
    losses = []
    for data in (prepared, typed):
        model = policy()
        model.__class__ = Typed
        made = DSSSFTTrainer(
            model, args=config(tmp_path), train_dataset=data, eval_dataset=data, processing_class=tokenizer
        )
        losses.append(made.evaluate()["eval_ce"])
    batch = DSSCollator(0)([typed[index] for index in range(len(typed))])
    model = policy()
    model.__class__ = Typed
    with torch.no_grad():
        logits = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}).logits
    expected = plain_loss(logits, batch, kl_scale=0.0)
    assert losses[1] == pytest.approx(expected.item(), abs=1e-5)
    assert abs(losses[1] - losses[0]) > 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packing": True, "max_length": 256, "packing_strategy": "wrapped"}, "packing_strategy='bfd'"),
        ({"completion_only_loss": False}, "completion_only_loss=False"),
        ({"truncation_mode": "keep_end"}, "cut on the right, got truncation_mode='keep_end'"),  # was of no effect
        ({"loss_type": "dft"}, "takes the place of loss_type='dft'"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_options_that_would_misalign_are_refused(tmp_path, prepared, tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, prepared, tokenizer, **options)


def test_compute_metrics_gets_the_labels_logprobs(tmp_path, prepared, tokenizer):
    """TRL's own step hands on logits only, and without any Trainer would leave compute_metrics out in silence."""

    def compute(prediction):
        logprobs = prediction.predictions[prediction.label_ids != -100]
        return {"token_ce": -float(logprobs.mean()), "tokens": len(logprobs)}

    made = DSSSFTTrainer(
        policy(),
        args=config(tmp_path),
        train_dataset=prepared,
        eval_dataset=prepared,
        processing_class=tokenizer,
        compute_metrics=compute,
    )
    metrics, batch = made.evaluate(), DSSCollator(0)(list(prepared))
    batch["token_weights"].fill_(1)
    with torch.no_grad():
        assert metrics["eval_token_ce"] == pytest.approx(enable_dss(policy())(**batch).ce.item(), abs=1e-5)
    assert metrics["eval_tokens"] == (batch["labels"] != -100).sum()


def test_shaped_and_plain_data_in_turn_log_their_own(tmp_path, prepared, tokenizer):
    """Neither zeros nor the other's values; and the best model can be chosen by accuracy."""
    plain = prepared.select_columns(["input_ids", "labels"])
    made = DSSSFTTrainer(
        policy(),
        args=config(tmp_path, eval_strategy="steps", eval_steps=1),
        train_dataset=prepared,
        eval_dataset={"plain": plain, "shaped": prepared},
        processing_class=tokenizer,
    )
    made.train()
    history = made.state.log_history
    for prefix, shaped in (("eval_plain_", False), ("eval_shaped_", True), ("", True)):
        entries = [entry for entry in history if f"{prefix}loss" in entry]
        assert len(entries) == 2
        for entry in entries:
            assert entry[f"{prefix}entropy"] > 0
            assert 0 <= entry[f"{prefix}mean_token_accuracy"] < 1
            assert (f"{prefix}ce" in entry) == shaped
    of_plain, of_shaped = ([e[f"eval_{kind}_entropy"] for e in history if f"eval_{kind}_entropy" in e]
                           for kind in ("plain", "shaped"))  # fmt: skip
    assert of_plain == pytest.approx(of_shaped, rel=1e-4)  # one model, the same rows
    args = config(tmp_path, eval_strategy="steps", eval_steps=1, load_best_model_at_end=True, save_strategy="best")
    args.metric_for_best_model = "eval_mean_token_accuracy"
    made = DSSSFTTrainer(policy(), args=args, train_dataset=prepared, eval_dataset=prepared, processing_class=tokenizer)
    made.train()
    assert made.state.best_metric == max(
        e["eval_mean_token_accuracy"] for e in made.state.log_history if "eval_loss" in e
    )


def test_trls_coefficient_of_the_auxiliary_loss(tmp_path, prepared, tokenizer):
    """SFTConfig's coefficient reaches the loss, and aux_loss is logged as TRL logs it for the same data unshaped."""
    logs = []
    for data, cls in ((prepared, DSSSFTTrainer), (prepared.select_columns(["input_ids", "labels"]), trl.SFTTrainer)):
        model = tiny_model("Mixtral", dtype=torch.float32, vocab_size=320)
        args = config(tmp_path, router_aux_loss_coef=0.7, max_steps=1, shuffle_dataset=False, learning_rate=0.0)
        made = cls(model, args=args, train_dataset=data, processing_class=tokenizer)
        made.train()
        logs.append(made.state.log_history[0])
    shaped, own = logs
    assert shaped["aux_loss"] == pytest.approx(own["aux_loss"], rel=1e-5)
    assert shaped["loss"] == pytest.approx(shaped["ce"] + shaped["kl"] + 0.7 * shaped["aux_loss"], abs=1e-4)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("options", [{}, {"packing": True, "max_length": 64}])
def test_scored_rows_that_stream_are_those_of_the_table(tmp_path, scored, tokenizer, known, options):
    """A stream knows its columns or does not; what it yields is what the table holds."""
    rows = list(scored)
    stream = scored.to_iterable_dataset() if known else datasets.IterableDataset.from_generator(lambda: iter(rows))
    streaming = DSSSFTTrainer(policy(), args=config(tmp_path, **options), train_dataset=stream,
                              processing_class=tokenizer, kl_scale=0.0)  # fmt: skip
    listed = DSSSFTTrainer(policy(), args=config(tmp_path, **options), train_dataset=scored,
                           processing_class=tokenizer, kl_scale=0.0)  # fmt: skip
    names = ("input_ids", "labels", "token_weights")
    ours, theirs = ([[list(row[name]) for name in names] for row in t.train_dataset]
                    for t in (streaming, listed))  # fmt: skip
    assert ours == theirs
    streaming.train()
    assert len([entry for entry in streaming.state.log_history if "token_weight" in entry]) == 2
