# LoRA or full finetuning, at which rate, and what is forgotten? With TRL, PEFT and lm-eval.
#   python sweep.py BASE DATA TASKS     DATA has train.jsonl and test.jsonl: question, answer
import shutil
import sys

import lm_eval
import pandas
import torch
from datasets import load_dataset
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import AutoPeftModelForCausalLM, LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

BASE, DATA, TASKS = sys.argv[1:]
ARMS = {"lora-r16": [8e-4, 2e-3, 5e-3], "full": [3.2e-4, 8e-4, 2e-3]}
SEEDS, EPOCHS, LIMIT = [0, 1, 2], [1, 3], 300
FORGETTING = {"micro_facts": "acc_norm", "micro_events": "acc_norm", "micro_pronouns": "acc"}
tokenizer = AutoTokenizer.from_pretrained(BASE)
manager = TaskManager(include_path=TASKS)


def chat(row):
    return {
        "prompt": [{"role": "user", "content": row["question"]}],
        "completion": [{"role": "assistant", "content": row["answer"]}],
    }


data = load_dataset("json", data_files={s: f"{DATA}/{s}.jsonl" for s in ("train", "test")})
data = data.map(chat, remove_columns=["question", "answer"])


def trainer_of(model, train, test, arm="full", rate=0.0, seed=0):
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    config = SFTConfig(
        output_dir="out", seed=seed, learning_rate=rate, num_train_epochs=max(EPOCHS),
        lr_scheduler_type="constant_with_warmup", warmup_steps=10,
        per_device_train_batch_size=12, per_device_eval_batch_size=60, max_length=128,
        use_cpu=True, bf16=False, gradient_checkpointing=False,
        save_strategy="epoch", save_only_model=True,
        logging_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    return SFTTrainer(
        model, config, train_dataset=train, eval_dataset=test, processing_class=tokenizer,
        peft_config=lora if arm.startswith("lora") else None,
    )  # fmt: skip


def measure(model, validation):
    model.eval()
    scores = {}
    for name, rows in {"validation": validation, "test": data["test"]}.items():
        scores[name] = trainer_of(model, rows, rows).evaluate()["eval_loss"]
    engine = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=64)
    found = lm_eval.simple_evaluate(
        engine, tasks=list(FORGETTING), limit=LIMIT, task_manager=manager, bootstrap_iters=0
    )["results"]
    scores["source"] = sum(found[t][f"{m},none"] for t, m in FORGETTING.items()) / len(FORGETTING)
    return scores


def load(folder, arm="full"):
    kind = AutoPeftModelForCausalLM if arm.startswith("lora") else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32)


rows = []
for seed in SEEDS:
    parts = data["train"].train_test_split(test_size=60, seed=seed)
    base = measure(load(BASE), parts["test"])
    for arm, rates in ARMS.items():
        for rate in rates:
            trainer = trainer_of(load(BASE), parts["train"], parts["test"], arm, rate, seed)
            trainer.train()
            steps = trainer.state.max_steps // max(EPOCHS)
            for epochs in EPOCHS:
                found = measure(load(f"out/checkpoint-{steps * epochs}", arm), parts["test"])
                rows.append({"arm": arm, "rate": rate, "seed": seed, "epochs": epochs})
                rows[-1]["validation"] = found["validation"]
                rows[-1]["learnt"] = base["test"] - found["test"]
                rows[-1]["forgot"] = 100 * (base["source"] - found["source"])
            shutil.rmtree("out")

runs = pandas.DataFrame(rows)
runs.to_csv("runs.csv", index=False)
means = runs.groupby(["arm", "epochs", "rate"])[["validation", "learnt", "forgot"]]
print(means.agg(["mean", "sem"]).round(3).to_string())
best = runs.loc[runs.groupby(["arm", "epochs", "seed"])["validation"].idxmin()]
print(best.groupby(["arm", "epochs"])[["rate", "learnt", "forgot"]].agg(["mean", "sem"]).round(3))
last = best[best.epochs == max(EPOCHS)].pivot(index="seed", columns="arm")
for side in ("learnt", "forgot"):
    gap = last[side]["full"] - last[side]["lora-r16"]
    print(f"full minus LoRA {side}: {gap.mean():.3f} ± {gap.sem():.3f} over {len(gap)} seeds")
