#!/usr/bin/env bash
# The system packages that the tests need, by apt, as root or with sudo. What is there already is left alone.
set -euo pipefail

# OpenCV, libjpeg-turbo and a compiler: the Python package ffcv is built against them.
packages=(libopencv-dev libturbojpeg0-dev pkg-config g++)
# A Slurm to run jobs on: the tests start their own, the installed services are not used.
packages+=(slurm-wlm munge)
# A browser, without a screen, to look at the reports of `tdformer runs compare`.
packages+=(chromium)
# 70,000 real images, for the study of Fashion-MNIST.
packages+=(dataset-fashion-mnist)

missing=()
for package in "${packages[@]}"; do
  dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -eq 0 ]; then
  as_root=()
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
  as_root=(sudo)
else
  echo "error: the tests need the system packages ${missing[*]}; install them as root, then run make test again." >&2
  exit 1
fi
if ! command -v apt-get >/dev/null; then
  echo "error: the tests need the Debian packages ${missing[*]} and there is no apt-get here; install their like and run the tests with .venv/bin/pytest" >&2
  exit 1
fi
"${as_root[@]}" apt-get update
DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install --yes --no-install-recommends "${missing[@]}"
