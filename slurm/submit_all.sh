#!/bin/bash
# Submit the whole way, each step when the one before has ended: train every fold -> predict with all of them -> pack the submission.
#   slurm/submit_all.sh        run it again after a failure: what is finished is not done again

# --- settings: edit, or set in the environment; they go before those of the batch files. SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_QOS,
#     SBATCH_TIMELIMIT and SBATCH_GPUS_PER_NODE reach all jobs.
: "${CONFIG:=surface}"                # a YAML file, or the name of one that pipeline list configs shows
: "${DATA:=data/vesuvius-challenge-surface-detection}"
: "${TEST:=$DATA/test_images}"
: "${RUN:=runs/surface}"
: "${PREDICTIONS:=predictions/${RUN##*/}}"
: "${SUBMISSION:=$RUN/submission.zip}"
: "${ACTIVATE:=.venv/bin/activate}"  # sourced first: a virtual environment, or a file of yours that loads modules and activates one
: "${TRAIN_OPTIONS:=}"               # more words for pipeline.train, e.g. --set train.epochs=100
: "${PREDICT_OPTIONS:=}"             # more words for pipeline.predict, e.g. --tta; the same for all shards and for slurm/ensemble.sbatch
: "${SPEC:=}"                        # an ensembles/NAME.yaml: its members, weights and post-processing instead of the plain mean of RUN
: "${TRAIN:=train_folds}"            # train_multinode: each fold on several nodes
: "${FOLDS:=0-4}"                    # 0 to data.folds.count - 1; 0-4%2: at most two at a time
: "${SHARDS:=1}"                     # tasks that share the prediction

set -euo pipefail
cd "$(dirname "$0")/.."
export CONFIG DATA TEST RUN PREDICTIONS SUBMISSION ACTIVATE TRAIN_OPTIONS PREDICT_OPTIONS SPEC SHARDS
logs=$RUN/slurm
mkdir -p "$logs"
unset SBATCH_ARRAY_INX SBATCH_OUTPUT

submit() { sbatch --parsable "$@" | cut -d ';' -f 1; }  # JOB;CLUSTER where there are several clusters

# afterany: the folds' results decide, not exit codes; the next job reads them and refuses where one is missing.
train=$(submit --array="$FOLDS" --output="$logs/%x_%A_%a.log" "slurm/$TRAIN.sbatch")
export TRAIN_JOB=$train
last=$train
echo "train       job $train, tasks $FOLDS"
if [[ $SHARDS -gt 1 && -z $SPEC ]]; then
    last=$(submit --dependency="afterany:$last" --array="0-$((SHARDS - 1))" --output="$logs/%x_%A_%a.log" slurm/predict_shards.sbatch)
    echo "predict     job $last, after $train, tasks 0-$((SHARDS - 1))"
fi
ensemble=$(submit --dependency="afterany:$last" --output="$logs/%x_%j.log" slurm/ensemble.sbatch)
echo "ensemble    job $ensemble, after $last"
submission=$(submit --dependency="afterok:$ensemble" --kill-on-invalid-dep=yes --output="$logs/%x_%j.log" slurm/submission.sbatch)
echo "submission  job $submission, after $ensemble"
echo "logs        $logs; the answer: $SUBMISSION"
