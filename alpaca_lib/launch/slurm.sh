# The rest of a batch script: runs `train`, and requeues the job after a SIGTERM.
newest() {
    ls -d "$OUTPUT_DIR"/checkpoint-* 2>/dev/null | sort -V | tail -n 1 || true
}
before=$(newest) stopping= code=0
# scancel sends the signal to the steps; srun itself would kill them.
trap 'stopping=1; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
train &
step=$!
wait "$step" || code=$?
# A signal ends the wait, not the step.
while [ "$code" -gt 128 ] && kill -0 "$step" 2>/dev/null; do
    code=0; wait "$step" || code=$?
done
if [ -n "$stopping" ] && [ "$code" -ne 0 ]; then
    trap '' TERM
    case $(scontrol show job "$SLURM_JOB_ID") in
    *JobState=RUNNING*)
        if [ "$SECONDS" -ge "$ENOUGH" ] && [ "$(newest)" = "$before" ]; then
            echo "not queued again: no checkpoint in $MINUTES minutes; raise that or grace"
        elif scontrol requeue "$SLURM_JOB_ID"; then
            echo "queued again, to resume from $(newest)"
        fi;;
    *) echo "not queued again here: cancelled, or Slurm itself does it";;
    esac
fi
exit "$code"
