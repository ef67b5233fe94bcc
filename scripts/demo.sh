#!/usr/bin/env bash
# The whole story on real data that a dependency ships, in a few minutes on two cores:
# a teacher is trained, labels every image once, and two students learn, one from hard labels
# and one from the store. Everything lands in ./demo, which is made anew.
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/setup.sh
bin="$PWD/.venv/bin"
demo="$PWD/demo"
started=$SECONDS
rm -rf "$demo"
mkdir -p "$demo"

say() { printf '\n== %s\n' "$*"; }

say "data: scikit-learn's handwritten digits"
"$bin/python" scripts/demo.py digits "$demo/digits"

say "a teacher, trained on them"
common=(--val "$demo/digits/val" --scale 0.5 1.0 --no-flip --batch-size 64 --lr 0.1)
"$bin/trainer" fit --method supervised --student resnet14 --data "$demo/digits/train" --size 32 \
    "${common[@]}" --epochs 6 --views-per-image 2 --out "$demo/teacher" --json > "$demo/teacher.json"

say "the teacher looks once: labelgen run"
"$bin/labelgen" run --teacher "file:$demo/teacher/student.safetensors" \
    --data "$demo/digits/train" --crops 16 --scale 0.5 1.0 --no-flip \
    --out "$demo/store.zarr" --json > "$demo/labels.json"
"$bin/labelstore" info "$demo/store.zarr"
"$bin/labelgen" preview --labels "$demo/store.zarr" --out "$demo/crops.png"

student=(--student resnet8 --epochs 8 --views-per-image 2)
say "a student from hard labels"
"$bin/trainer" fit --method supervised --data "$demo/digits/train" --size 32 "${common[@]}" \
    "${student[@]}" --out "$demo/student-hard" --json > "$demo/student-hard.json"

say "the same student from the store, without the teacher"
"$bin/trainer" fit --labels "$demo/store.zarr" --val "$demo/digits/val" --batch-size 64 --lr 0.1 \
    "${student[@]}" --out "$demo/student-store" --json > "$demo/student-store.json"

say "result"
"$bin/python" scripts/demo.py table "$demo"
printf 'pictures: %s, %s\nall of it took %s s after set-up\n' \
    "$demo/crops.png" "$demo/student-store/curves.png" "$((SECONDS - started))"
