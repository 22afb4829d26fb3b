#!/usr/bin/env bash
# Everything that is measured on one GPU, in one call and one table:
#
#   tests/benchmarks/gpu.sh [--nanogpt CHECKOUT] [--size small] [--batch 12] [--block 1024] [--steps 20]
#
# bf16, compile, attention kernels and Muon; QLoRA; fully_shard on one device; GPT-2 124M against nanoGPT; and the plan
# of five runs against what they take. Install first: pip install -e '.[quantize]' kernels
# --quick runs all of it on a CPU with tiny sizes, to see that it works.
set -uo pipefail
cd "$(dirname "$0")/../.."
checkout="" sizes=() plan=()
while [ "$#" -gt 0 ]; do
  case "$1" in
    --nanogpt) checkout=$2; shift 2 ;;
    --quick) sizes=(--size tiny --batch 2 --block 32 --steps 2); plan=(--only 0 --quick); shift ;;
    --size | --batch | --block | --steps) sizes+=("$1" "$2"); shift 2 ;;
    *) echo "unknown option $1" >&2; exit 2 ;;
  esac
done

failed=0
part() { "$@" || { echo "| $* | FAILED | | | |"; failed=1; }; }
python -c 'import torch, transformers; c = torch.cuda.is_available()
print(torch.cuda.get_device_name() if c else "CPU: nothing here is a result", torch.__version__, transformers.__version__)'
echo
echo "| what | speed | MFU | peak memory | |"
echo "|---|---|---|---|---|"
part python tests/benchmarks/gpu.py steps "${sizes[@]}"
part python tests/benchmarks/gpu.py shard "${sizes[@]}"
part python tests/benchmarks/gpu.py qlora "${sizes[@]}"
if [ -n "$checkout" ]; then
  part python tests/benchmarks/gpu.py nanogpt --checkout "$checkout" "${sizes[@]}"
else
  echo "| nanoGPT | not run: --nanogpt CHECKOUT | | | |"
fi
echo
part python tests/benchmarks/plan.py --device auto "${plan[@]}"
exit "$failed"
