#!/usr/bin/env bash
# The complete story, from the tokenizer to a model that is loaded by its name. Minutes on two cores.
#
#     bash docs/tutorial/story.sh out/story               # nothing is published
#     bash docs/tutorial/story.sh out/story user/name     # publishes; log in before: hf auth login
set -euo pipefail
out=${1:-out/story}
repo=${2:-}
mkdir -p "$out"

echo "== 1. A tokenizer, trained on the built-in text"
python - "$out/tokenizer" <<'END'
import sys

from hf_lm.data.sources import load_corpus
from hf_lm.tokenization.tokenizer import train_bpe

tokenizer = train_bpe(load_corpus("demo").documents("train"), vocab_size=2048)
tokenizer.save_pretrained(sys.argv[1])
print(len(tokenizer), "tokens:", tokenizer.tokenize("The function returns a new array."))
END

echo "== 2. Pretraining: a GPT-2, with that tokenizer"
hf-lm run pretrain --tokenizer "$out/tokenizer" --max_steps 40 --output_dir "$out/pretrain"

echo "== 3. Fine-tuning: the same model, on conversations"
hf-lm run chat --model "$out/pretrain" --max_length 128 --per_device_train_batch_size 8 --max_steps 20 \
  --output_dir "$out/chat"

echo "== 4. Chat"
printf '%s\n' "What is json.dumps for?" /quit | hf-lm chat "$out/chat" --temperature 0 --max_new_tokens 24

echo "== 5. A page, started and stopped"
hf-lm demo "$out/chat" --port 0 > "$out/page.txt" &
page=$!
trap 'kill "$page" 2> /dev/null || true' EXIT
until url=$(grep --only-matching 'http://127[^ ]*' "$out/page.txt"); do
  kill -0 "$page" # ends the script if the page has ended
  sleep 1
done
python -c "import sys, urllib.request as web; print(web.urlopen(sys.argv[1]).status, sys.argv[1])" "$url"
kill "$page"
wait "$page" || true

if [ -z "$repo" ]; then
  echo "== $out/chat is ready. Publish it: hf-lm push $out/chat user/name"
  exit
fi

echo "== 6. Push"
hf-lm push "$out/chat" "$repo"

echo "== 7. Load it by its name, as anybody can"
python - "$repo" <<'END'
import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
question = [{"role": "user", "content": "What is json.dumps for?"}]
inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
print(type(model).__name__, "answers:", tokenizer.decode(answer, skip_special_tokens=True))
END
