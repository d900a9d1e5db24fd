#!/usr/bin/env bash
# Trains the nuclei model with one augmentation after the other, with several
# seeds, and prints the mask AP of each run (docs/augmentation.md):
#   bash docs/nuclei_augmentation.sh [FOLDER [STEPS [SEEDS [ARMS]]]]
# Needs local/demo and local/nuclei/{train,val} (docs/finetuning.md, "Nuclei").
# An interrupted run resumes with the same command.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=${1:-local/nuclei/augmentation}
steps=${2:-300}
seeds=${3:-0 1 2}
arms=${4:-flip turns scale photometric copy_paste scratch scratch_turns}
mkdir -p "$folder"
set_to=--config.input.augment

for seed in $seeds; do
  for arm in $arms; do
    config=shapes:nuclei
    [[ $arm == scratch* ]] && config=shapes:nuclei_from_scratch
    flags=()
    # Every arm has what the arms before it have.
    case $arm in
      copy_paste) flags+=("$set_to.copy_paste=0.5") ;&
      photometric) flags+=("$set_to.photometric=true") ;&
      scale) flags+=("$set_to.scale_range=(0.5,2.0)") ;&
      turns | scratch_turns)
        flags+=("$set_to.vertical_flip=true" "$set_to.quarter_turns=true") ;;
    esac
    workdir=$folder/$arm-$seed
    .venv/bin/maskrcnn-jax train_and_eval --config=$config --workdir="$workdir" \
      --config.training.seed="$seed" --config.input.seed="$seed" \
      --config.training.num_steps="$steps" --config.evaluation.every_steps="$steps" \
      --config.training.checkpoint_every_steps="$steps" \
      --config.training.pictures=0 \
      ${flags[@]+"${flags[@]}"} > "$workdir.log" 2>&1
    echo "$arm $seed $(grep -o '"eval/mask_AP": [0-9.]*' \
      "$workdir/metrics.jsonl" | tail -1)"
  done
done
