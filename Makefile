# make demo     fold the cloth with the checkpoint that ships       make test    the tests
# make train    from nothing to such a checkpoint (resumable)       make lint    ruff
# The first call makes .venv and installs everything pinned in constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-input --constraint constraints.txt

export MUJOCO_GL ?= egl
export LP_NUM_THREADS ?= 1

# What `make train` makes. Fewer episodes and steps are quicker and fold less often.
RUN ?= outputs/make_train
FOLD_EPISODES ?= 400
LIFT_EPISODES ?= 200
MODEL ?= S
PLAY_EPISODES ?= 40
BRANCH_SEEDS ?= 20
OWN_EPISODES ?= 90
UNSURE_SEEDS ?= 10
LOST_FOLDS ?= 40
LOST_LIFTS ?= 20
TOKENIZER_STEPS ?= 24000
TRAIN_STEPS ?= 7500
AGAIN_STEPS ?= 2500
# Nothing else runs meanwhile, so all cores train; beside other work one thread is faster than two.
THREADS ?= $(shell nproc)
EVAL_EPISODES ?= 50
DATA := $(RUN)/data/fold,$(RUN)/data/lift,$(RUN)/data/fold_play,$(RUN)/data/lift_play,$(RUN)/data/fold_branch,$(RUN)/data/lift_branch
AGAIN_DATA := $(RUN)/data/own,$(RUN)/data/unsure,$(RUN)/data/fold_lost,$(RUN)/data/lift_lost
TRAIN := tokenizer=$(RUN)/tokenizer model=$(MODEL) threads=$(THREADS)
EVALUATE := policy=planner split=seen seed=1000 episodes=$(EVAL_EPISODES) checkpoint=$(RUN)/model/checkpoint

.PHONY: help demo test train lint preflight
.DEFAULT_GOAL := help

help: ## what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

demo: $(INSTALLED) ## fold the cloth in MuJoCo with the checkpoint that ships; writes outputs/demo/
	$(BIN)/python -m agent.demo

test: $(INSTALLED) ## run the tests
	@$(BIN)/python -m pytest

lint: $(INSTALLED) ## check the style
	$(BIN)/ruff check .

train: $(INSTALLED) ## collect, train and evaluate from nothing; run it again to go on where it stopped
	$(BIN)/python -m agent.collect env=fold_half episodes=$(FOLD_EPISODES) out=$(RUN)/data/fold
	$(BIN)/python -m agent.collect env=lift episodes=$(LIFT_EPISODES) out=$(RUN)/data/lift
	@# what actions do, beside what is good: purposes of its own, and several futures of one state
	$(BIN)/python -m agent.collect env=fold_half policy=play seed=200000 episodes=$(PLAY_EPISODES) out=$(RUN)/data/fold_play
	$(BIN)/python -m agent.collect env=lift policy=play seed=200000 episodes=$(PLAY_EPISODES) out=$(RUN)/data/lift_play
	$(BIN)/python -m agent.collect env=fold_half policy=branch seed=300000 episodes=$(BRANCH_SEEDS) out=$(RUN)/data/fold_branch
	$(BIN)/python -m agent.collect env=lift policy=branch seed=300000 episodes=$(BRANCH_SEEDS) out=$(RUN)/data/lift_branch
	$(BIN)/python -m world_model.train_tokenizer 'data=[$(DATA)]' steps=$(TOKENIZER_STEPS) threads=$(THREADS) out=$(RUN)/tokenizer
	$(BIN)/python -m world_model.train 'data=[$(DATA)]' $(TRAIN) steps=$(TRAIN_STEPS) out=$(RUN)/first
	@# DAgger: the expert's advice about what the model itself gets into
	$(BIN)/python -m agent.collect env=fold_half policy=model checkpoint=$(RUN)/first/checkpoint seed=100000 episodes=$(OWN_EPISODES) out=$(RUN)/data/own
	@# and more futures of the states where it is unsure what follows
	$(BIN)/python -m agent.collect env=fold_half policy=branch policy.branch.unsure=true checkpoint=$(RUN)/first/checkpoint seed=310000 episodes=$(UNSURE_SEEDS) out=$(RUN)/data/unsure
	@# and where it gets lost after play: what its failures look like, and the ways back
	$(BIN)/python -m agent.collect env=fold_half policy=play policy.then=model checkpoint=$(RUN)/first/checkpoint seed=400000 episodes=$(LOST_FOLDS) out=$(RUN)/data/fold_lost
	$(BIN)/python -m agent.collect env=lift policy=play policy.then=model checkpoint=$(RUN)/first/checkpoint seed=400000 episodes=$(LOST_LIFTS) out=$(RUN)/data/lift_lost
	$(BIN)/python -m world_model.train 'data=[$(DATA),$(AGAIN_DATA)]' $(TRAIN) start=$(RUN)/first/checkpoint muon_rate=0.012 learning_rate=1.2e-3 steps=$(AGAIN_STEPS) out=$(RUN)/model
	$(BIN)/python -m agent.evaluate env=fold_half $(EVALUATE) out=$(RUN)/evaluate/fold
	$(BIN)/python -m agent.evaluate env=lift $(EVALUATE) out=$(RUN)/evaluate/lift

preflight: ## is the system ready? (every other target asks this first)
	@command -v $(PYTHON) >/dev/null || { echo "missing: Python. Install with: sudo apt-get install -y python3 python3-venv libegl1 libgl1-mesa-dri" >&2; exit 1; }
	@$(PYTHON) -I envs/preflight.py $(if $(wildcard $(INSTALLED)),,--installing)

$(INSTALLED): pyproject.toml constraints.txt | preflight
	$(PYTHON) -m venv .venv
	$(PIP) --editable ".[dev]"
	$(PIP) --no-deps robosuite
	@touch $@
