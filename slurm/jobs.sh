# What the batch files share; sourced by them, in the folder from which they were submitted.
# shellcheck shell=bash
#
# resumable COMMAND ...   runs a command that saves and ends with exit code 75 when it is sent USR1, and passes its exit code on.
#     USR1 to this shell (Slurm's warning before the time limit or a preemption, see --signal): the command is asked to stop, and
#     when it has saved, the job goes back into the queue and continues there by itself.
#     TERM (scancel, or a preemption in which Slurm requeues by itself): the command is asked to stop; the job is not put back.

if [[ -n ${ACTIVATE:-} ]]; then
    # shellcheck source=/dev/null
    . "$ACTIVATE" || { echo "ACTIVATE=$ACTIVATE: could not be sourced; it sets up Python (see the top of the batch file)" >&2; exit 2; }
fi
set -uf  # -f: the words of TRAIN_OPTIONS are no file patterns
child='' asked='' told='' interrupted=''
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID:-}}  # the plain id of an array's last task means the whole array
job=${job:-${SLURM_JOB_ID:-none}}

note() { echo "[$(date '+%F %T') job $job on ${SLURMD_NODENAME:-$HOSTNAME}] $*"; }

resumable() {
    local code
    trap 'ask USR1' USR1
    trap 'ask TERM' TERM
    note "start ${SLURM_RESTART_COUNT:-0}: $*"
    "$@" &  # a trap waits for the command in the foreground to end, so there must be none
    child=$!
    [[ -z $asked ]] || tell
    interrupted=''
    wait "$child"
    code=$?
    while [[ -n $interrupted ]]; do  # what ended was the wait, perhaps not the command
        interrupted=''
        wait "$child"
        code=$?
    done
    note "exit code $code"
    if [[ $code -ne 0 && $asked == USR1 ]] || [[ $code -eq 75 && $asked != TERM ]]; then
        requeue
    fi
    return "$code"
}

ask() {
    interrupted=1
    [[ $asked == TERM ]] || asked=$1
    note "received $1"
    [[ -z $child ]] || tell
}

tell() {  # once: a second signal of the same kind would end Python in the middle of its save
    [[ -z $told ]] || return 0
    told=1
    kill -USR1 "$child" 2>/dev/null || true
}

requeue() {  # before the exit: a job that has failed would release those that depend on it
    note "going back into the queue"
    scontrol requeue "$job" || note "could not be requeued: submit it again by hand" >&2
}

complete() {  # whether every fold of RUN is complete; ends the job where they are not, or puts it back while they are still at work
    local missing
    # pipeline.predict itself refuses named folds that are not complete
    [[ -n ${SPEC:-} || " ${PREDICT_OPTIONS:-} " != *" --folds "* ]] || return 0
    missing=$(PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}" python slurm/missing_folds.py "$RUN") || return 2
    [[ -n $missing ]] || return 0
    if [[ -n ${TRAIN_JOB:-} && -n $(squeue --noheader --jobs "$TRAIN_JOB" 2>/dev/null) ]]; then
        note "folds $missing of $RUN are not complete, and job $TRAIN_JOB is still in the queue: trying again later"
        requeue
        return 75
    fi
    note "folds $missing of $RUN are not complete. Nothing was predicted."
    echo "The logs of the training tasks say why. Then run the same slurm/submit_all.sh again (finished folds end at once), or"
    echo "    sbatch --array=$missing slurm/train_folds.sbatch, and after it sbatch slurm/ensemble.sbatch"
    return 2
} >&2
