#!/usr/bin/env bash
# Train a model of the paper's size: every stage in order, one process a GPU, each resumed where it stopped.
#
#   INIT=paper-7b DATA=built OUT=runs/paper scripts/train_paper.sh
#   CONFIG=model/training/paper-dry.json GPUS=2 OUT=runs/dry scripts/train_paper.sh     the same path in minutes on a CPU
#
# CONFIG  stages and their numbers (model/training/paper.json)
# INIT    a checkpoint to start from, as `slidereason checkpoint import` leaves it; a shrunken model needs none
# DATA    folder of a built set, with train.jsonl; default: SLIDEREASON_DATASETS
# OUT     one folder a stage goes here (runs/paper)
# GPUS    processes (8); without a GPU they compute on the CPU
# STAGES  which, in order (ssl pretrain sft so-grpo); a stage whose checkpoint is there is left out
# WORKERS processes that make batches, for each GPU (8)
# ARGS    further options of `slidereason train`
set -euo pipefail
cd "$(dirname "$0")/.."

paper=model/training/paper.json
config="${CONFIG:-$paper}" init="${INIT:-}" data="${DATA:-}" out="${OUT:-runs/paper}"
python="${VENV:-.venv}/bin/python"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

if [ -z "$init" ] && [ "$config" = "$paper" ]; then
    echo "train_paper: INIT must name a checkpoint; docs/checkpoints.md tells how public weights become one" >&2
    exit 2
fi

for stage in ${STAGES:-ssl pretrain sft so-grpo}; do
    if [ -f "$out/$stage/checkpoint/card.json" ]; then # what a checkpoint writes last
        echo "train_paper: $stage is done: $out/$stage/checkpoint"
        continue
    fi
    from=(${init:+--init "$init"})
    case "$stage" in
        ssl) earlier="" ;;
        pretrain) earlier="ssl" ;;
        sft) earlier="ssl pretrain" ;;
        so-grpo)
            from=()
            earlier="sft"
            ;;
        *)
            echo "train_paper: no stage $stage; accepted are ssl, pretrain, sft and so-grpo" >&2
            exit 2
            ;;
    esac
    for before in $earlier; do
        if [ -d "$out/$before/checkpoint" ]; then from+=(--init "$out/$before"); fi
    done
    if [ "$stage" = so-grpo ] && [ ${#from[@]} -eq 0 ]; then from=(${init:+--init "$init"}); fi
    echo "train_paper: $stage"
    # shellcheck disable=SC2086
    "$python" -m torch.distributed.run --standalone --nproc-per-node "${GPUS:-8}" -m model.training "$stage" \
        --config "$config" --out "$out/$stage" ${data:+--data "$data"} --workers "${WORKERS:-8}" \
        ${from[@]+"${from[@]}"} ${ARGS:-}
done
