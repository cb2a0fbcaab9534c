# make demo     fold the cloth with the checkpoint that ships       make test    the tests
# make explore  MuJoCo and the dream side by side, on a page in the browser
# make train    from nothing to such a checkpoint (resumable)       make lint    ruff
# make few      what planning adds to a checkpoint of 50 demonstrations of FoldHalf (resumable)
# make few-lift the same on Lift (resumable)
# The first call makes .venv and installs everything pinned in constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-input --constraint constraints.txt

export MUJOCO_GL ?= egl
export LP_NUM_THREADS ?= 1

# What `make train` makes. Fewer episodes and steps are quicker and fold less often.
RUN ?= outputs/make_train
FOLD_EPISODES ?= 200
LIFT_EPISODES ?= 400
LOOKS ?= 1
MODEL ?= S
MISJUDGED_EPISODES ?= 60
FAILED_EPISODES ?= 20
PLAY_EPISODES ?= 20
BRANCH_SEEDS ?= 8
OWN_EPISODES ?= 60
LOST_EPISODES ?= 20
JUDGED_EPISODES ?= 30
TOKENIZER_STEPS ?= 15000
TRAIN_STEPS ?= 5000
AGAIN_STEPS ?= 3000
# Nothing else runs meanwhile, so all cores train; beside other work one thread is faster than two.
THREADS ?= $(shell nproc)
EVAL_EPISODES ?= 50
EMPTY :=
SPACE := $(EMPTY) $(EMPTY)
COMMA := ,
folders = [$(subst $(SPACE),$(COMMA),$(strip $(foreach task,fold_half lift,$(patsubst %,$(1)/$(task)%,$(2)))))]
TAUGHT := $(call folders,$(RUN)/data,_shown _shown_looks _misjudged _play _branch)
TAUGHT_AGAIN := $(call folders,$(RUN)/data,_shown _shown_looks _misjudged _play _branch _own _lost)
JUDGED := $(call folders,$(RUN)/judged,_disturbed _own _lost)
AUGMENT := augment=tabletop augment.hue=2.0 augment.scale=0.12 augment.patches=10
TRAIN := 'unlabelled=[$(RUN)/data/fold_half_failed]' $(AUGMENT) model=$(MODEL) coefs=[4,4,4,2,2,2] 'strides=[1,2,4,8]' \
	view_share=0.05 swap_share=0.05 model.weights.imageless=0.6 model.weights.belief=3 held_out=20 threads=$(THREADS)
EVALUATE := policy=planner seed=1000 episodes=$(EVAL_EPISODES) checkpoint=$(RUN)/model/checkpoint

# What `make few` and `make few-lift` make, in plain looks: 50 demonstrations are too few to show many of them.
# Their frames are read with the tokenizer of the checkpoints like theirs that ship.
FEW ?= outputs/make_few
PLAIN := env.options.looks=plain
FEW_DEMONSTRATIONS ?= 50
FEW_PLAY_EPISODES ?= 40
FEW_BRANCH_SEEDS ?= 20
FEW_ATTEMPTS ?= 80
FEW_FIRST_STEPS ?= 3000
FEW_AGAIN_STEPS ?= 2500
FEW_EVAL_EPISODES ?= 100
FEW_TRAIN := held_out=20 coefs=[4,4,4,2,2,2] model=$(MODEL) augment=tabletop threads=$(THREADS)
FEW_FOLD := 'data=[$(FEW)/data/fold]' 'unlabelled=[$(FEW)/data/play,$(FEW)/data/branch]' $(FEW_TRAIN)
FEW_LIFT := 'data=[$(FEW)/data/lift]' 'unlabelled=[$(FEW)/data/lift_play,$(FEW)/data/lift_branch]' $(FEW_TRAIN)
FEW_AGAIN := muon_rate=0.012 learning_rate=1.2e-3 steps=$(FEW_AGAIN_STEPS)
# An attempt either succeeds within 140 control steps, or is lost by then.
FEW_TRY := env=fold_half $(PLAIN) +env.max_steps=140 policy.execute=8 episodes=$(FEW_ATTEMPTS)
FEW_EVALUATE := $(PLAIN) policy.execute=8 split=seen seed=7000 episodes=$(FEW_EVAL_EPISODES)
FEW_EVALUATE_FOLD := env=fold_half $(FEW_EVALUATE) checkpoint=$(FEW)/model/checkpoint
FEW_EVALUATE_LIFT := env=lift $(FEW_EVALUATE) checkpoint=$(FEW)/lift/checkpoint
PLANNER_LOW_DATA := policy=planner_low_data

.PHONY: help demo explore test train few few-lift lint preflight
.DEFAULT_GOAL := help

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

demo: $(INSTALLED) ## fold the cloth in MuJoCo with the checkpoint that ships; writes outputs/demo/
	$(BIN)/python -m agent.demo

explore: $(INSTALLED) ## drive MuJoCo and the dream side by side, on a page in the browser
	$(BIN)/python -m agent.explore

test: $(INSTALLED) ## run the tests, one process a core
	@$(BIN)/python -m pytest -n auto --dist loadfile

lint: $(INSTALLED) ## check the style
	$(BIN)/ruff check .

train: $(INSTALLED) ## collect, train and evaluate from nothing; run it again to go on where it stopped
	$(BIN)/python -m agent.collect env=fold_half states=drawn perturb.failures=0 episodes=$(FOLD_EPISODES) out=$(RUN)/data/fold_half_shown
	$(BIN)/python -m agent.collect env=lift states=drawn episodes=$(LIFT_EPISODES) out=$(RUN)/data/lift_shown
	@# the same scenes in other textures, colours and light, from other places
	$(BIN)/python -m agent.rerender data=$(RUN)/data/fold_half_shown looks=$(LOOKS) 'views=[top]' out=$(RUN)/data/fold_half_shown_looks
	$(BIN)/python -m agent.rerender data=$(RUN)/data/lift_shown looks=$(LOOKS) 'views=[top]' out=$(RUN)/data/lift_shown_looks
	@# grasped and laid beside, as learners do, and mended
	$(BIN)/python -m agent.collect env=fold_half perturb.misjudged=0.014 perturb.failures=0 seed=50000 episodes=$(MISJUDGED_EPISODES) out=$(RUN)/data/fold_half_misjudged
	$(BIN)/python -m agent.collect env=lift perturb.misjudged=0.01 perturb.failures=0 seed=50000 episodes=$(MISJUDGED_EPISODES) out=$(RUN)/data/lift_misjudged
	@# what actions do, beside what is good: purposes of its own, and several futures of one state; and what fails
	$(BIN)/python -m agent.collect env=fold_half policy=play seed=200000 episodes=$(PLAY_EPISODES) out=$(RUN)/data/fold_half_play
	$(BIN)/python -m agent.collect env=lift policy=play seed=200000 episodes=$(PLAY_EPISODES) out=$(RUN)/data/lift_play
	$(BIN)/python -m agent.collect env=fold_half policy=branch seed=300000 episodes=$(BRANCH_SEEDS) out=$(RUN)/data/fold_half_branch
	$(BIN)/python -m agent.collect env=lift policy=branch seed=300000 episodes=$(BRANCH_SEEDS) out=$(RUN)/data/lift_branch
	$(BIN)/python -m agent.collect env=fold_half perturb.failures=1 seed=150000 episodes=$(FAILED_EPISODES) out=$(RUN)/data/fold_half_failed
	$(BIN)/python -m world_model.train_tokenizer 'data=$(TAUGHT)' $(AUGMENT) steps=$(TOKENIZER_STEPS) threads=$(THREADS) out=$(RUN)/tokenizer
	$(BIN)/python -m world_model.train 'data=$(TAUGHT)' $(TRAIN) tokenizer=$(RUN)/tokenizer steps=$(TRAIN_STEPS) out=$(RUN)/first
	@# DAgger: the expert's advice about what the model itself gets into
	$(BIN)/python -m agent.collect env=fold_half policy=model checkpoint=$(RUN)/first/checkpoint seed=100000 episodes=$(OWN_EPISODES) out=$(RUN)/data/fold_half_own
	$(BIN)/python -m agent.collect env=lift policy=model checkpoint=$(RUN)/first/checkpoint seed=100000 episodes=$(OWN_EPISODES) out=$(RUN)/data/lift_own
	@# and where it gets lost after play: what its failures look like, and the ways back
	$(BIN)/python -m agent.collect env=fold_half policy=play policy.then=model checkpoint=$(RUN)/first/checkpoint seed=400000 episodes=$(LOST_EPISODES) out=$(RUN)/data/fold_half_lost
	$(BIN)/python -m agent.collect env=lift policy=play policy.then=model checkpoint=$(RUN)/first/checkpoint seed=400000 episodes=$(LOST_EPISODES) out=$(RUN)/data/lift_lost
	$(BIN)/python -m world_model.train 'data=$(TAUGHT_AGAIN)' $(TRAIN) start=$(RUN)/first/checkpoint muon_rate=0.012 learning_rate=1.2e-3 steps=$(AGAIN_STEPS) out=$(RUN)/trained
	@# what it forgot meanwhile, and what it gained: half of both
	$(BIN)/python -m world_model.average 'checkpoints=[$(RUN)/first/checkpoint,$(RUN)/trained/checkpoint]' out=$(RUN)/averaged
	@# what states are worth to the finished model, from episodes that it never learnt from
	$(BIN)/python -m agent.collect env=fold_half seed=500000 episodes=$(JUDGED_EPISODES) out=$(RUN)/judged/fold_half_disturbed
	$(BIN)/python -m agent.collect env=lift seed=500000 episodes=$(JUDGED_EPISODES) out=$(RUN)/judged/lift_disturbed
	$(BIN)/python -m agent.collect env=fold_half policy=model checkpoint=$(RUN)/averaged seed=510000 episodes=$(JUDGED_EPISODES) out=$(RUN)/judged/fold_half_own
	$(BIN)/python -m agent.collect env=lift policy=model checkpoint=$(RUN)/averaged seed=510000 episodes=$(JUDGED_EPISODES) out=$(RUN)/judged/lift_own
	$(BIN)/python -m agent.collect env=fold_half policy=play policy.then=model checkpoint=$(RUN)/averaged seed=520000 episodes=$(JUDGED_EPISODES) out=$(RUN)/judged/fold_half_lost
	$(BIN)/python -m agent.collect env=lift policy=play policy.then=model checkpoint=$(RUN)/averaged seed=520000 episodes=$(JUDGED_EPISODES) out=$(RUN)/judged/lift_lost
	$(BIN)/python -m world_model.fit_value 'data=$(JUDGED)' start=$(RUN)/averaged threads=$(THREADS) out=$(RUN)/model/checkpoint
	$(BIN)/python -m agent.evaluate env=fold_half $(EVALUATE) split=seen out=$(RUN)/evaluate/fold_half_seen
	$(BIN)/python -m agent.evaluate env=fold_half $(EVALUATE) split=unseen out=$(RUN)/evaluate/fold_half_unseen
	$(BIN)/python -m agent.evaluate env=lift $(EVALUATE) split=seen out=$(RUN)/evaluate/lift_seen
	$(BIN)/python -m agent.evaluate env=lift $(EVALUATE) split=unseen out=$(RUN)/evaluate/lift_unseen

few: $(INSTALLED) ## what planning adds where demonstrations are few; run it again to go on where it stopped
	$(BIN)/python -m agent.collect env=fold_half $(PLAIN) episodes=$(FEW_DEMONSTRATIONS) out=$(FEW)/data/fold
	@# what follows an action is learnt from these, but not what to do
	$(BIN)/python -m agent.collect env=fold_half $(PLAIN) policy=play seed=200000 episodes=$(FEW_PLAY_EPISODES) out=$(FEW)/data/play
	$(BIN)/python -m agent.collect env=fold_half $(PLAIN) policy=branch seed=300000 episodes=$(FEW_BRANCH_SEEDS) out=$(FEW)/data/branch
	$(BIN)/python -m world_model.train $(FEW_FOLD) tokenizer=checkpoints/nextstate-few steps=$(FEW_FIRST_STEPS) out=$(FEW)/first
	@# and from what it tries itself, alone and with search, also what a state is worth
	$(BIN)/python -m agent.collect $(FEW_TRY) policy=model checkpoint=$(FEW)/first/checkpoint seed=220000 out=$(FEW)/data/alone
	$(BIN)/python -m agent.collect $(FEW_TRY) $(PLANNER_LOW_DATA) checkpoint=$(FEW)/first/checkpoint seed=230000 out=$(FEW)/data/planned
	$(BIN)/python -m world_model.train $(FEW_FOLD) $(FEW_AGAIN) start=$(FEW)/first/checkpoint 'on_policy=[$(FEW)/data/alone,$(FEW)/data/planned]' out=$(FEW)/second
	$(BIN)/python -m agent.collect $(FEW_TRY) $(PLANNER_LOW_DATA) checkpoint=$(FEW)/second/checkpoint seed=231000 out=$(FEW)/data/planned_again
	$(BIN)/python -m world_model.train $(FEW_FOLD) $(FEW_AGAIN) start=$(FEW)/second/checkpoint 'on_policy=[$(FEW)/data/alone,$(FEW)/data/planned,$(FEW)/data/planned_again]' out=$(FEW)/model
	$(BIN)/python -m agent.evaluate $(FEW_EVALUATE_FOLD) policy=model out=$(FEW)/evaluate/model
	$(BIN)/python -m agent.evaluate $(FEW_EVALUATE_FOLD) $(PLANNER_LOW_DATA) out=$(FEW)/evaluate/planner
	$(BIN)/python -m agent.compare first=$(FEW)/evaluate/planner second=$(FEW)/evaluate/model

few-lift: $(INSTALLED) ## the same on Lift, where a search can do without what was tried before
	$(BIN)/python -m agent.collect env=lift $(PLAIN) episodes=$(FEW_DEMONSTRATIONS) out=$(FEW)/data/lift
	$(BIN)/python -m agent.collect env=lift $(PLAIN) policy=play seed=200000 episodes=$(FEW_PLAY_EPISODES) out=$(FEW)/data/lift_play
	$(BIN)/python -m agent.collect env=lift $(PLAIN) policy=branch seed=300000 episodes=$(FEW_BRANCH_SEEDS) out=$(FEW)/data/lift_branch
	$(BIN)/python -m world_model.train $(FEW_LIFT) tokenizer=checkpoints/nextstate-few steps=$(FEW_FIRST_STEPS) out=$(FEW)/lift
	$(BIN)/python -m agent.evaluate $(FEW_EVALUATE_LIFT) policy=model out=$(FEW)/evaluate/lift_model
	$(BIN)/python -m agent.evaluate $(FEW_EVALUATE_LIFT) $(PLANNER_LOW_DATA) out=$(FEW)/evaluate/lift_planner
	$(BIN)/python -m agent.compare first=$(FEW)/evaluate/lift_planner second=$(FEW)/evaluate/lift_model

preflight: ## is the system ready? (every other target asks this first)
	@command -v $(PYTHON) >/dev/null || { echo "missing: Python. Install with: sudo apt-get install -y python3 python3-venv libegl1 libgl1-mesa-dri" >&2; exit 1; }
	@$(PYTHON) -I envs/preflight.py $(if $(wildcard $(INSTALLED)),,--installing)

$(INSTALLED): pyproject.toml constraints.txt | preflight
	$(PYTHON) -m venv .venv
	$(PIP) --editable ".[dev]"
	$(PIP) --no-deps robosuite openpi-client
	@touch $@
