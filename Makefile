# Thin: every target is one command that can also be typed by hand.
# `make demo` and `make test` work from a fresh Debian 12 with Python 3.11.

VENV := .venv
BIN := $(VENV)/bin

# A recipe that fails leaves no half-made file behind.
.DELETE_ON_ERROR:
.PHONY: demo paper alexnet-cifar10 test test-all test-mpi lint fuzz fuzz-kernels fuzz-kernels-arm bench image image-test clean

# Caffe, the package and its development tools, in a virtual environment of this checkout.
$(VENV)/.ready: setup.py $(addprefix docker/,install-caffe.sh requirements.txt) $(wildcard deepsz_caffe/*/native/*)
	docker/install-caffe.sh $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --use-pep517 -e '.[caffe,plots,cluster,zfp,brotli,dev]'
	touch $@

# The whole pipeline on LeNet-300-100; a second run reuses what the first has done.
DEMO := build/demo
demo: $(VENV)/.ready
	$(BIN)/deepsz mnist data/mnist
	$(BIN)/deepsz reproduce lenet-300-100 --from-models --out $(DEMO)

# Every table and figure of the paper that needs no ImageNet; interrupted, it goes on where it was.
paper: $(VENV)/.ready
	$(BIN)/deepsz mnist data/mnist
	$(BIN)/deepsz reproduce lenet-300-100 --seeds 5 --retrain --whole --jobs $$(nproc)
	$(BIN)/deepsz reproduce lenet-5 --seeds 5 --retrain --whole --jobs $$(nproc)
	$(BIN)/deepsz reproduce alexnet --generated
	$(BIN)/deepsz reproduce vgg-16 --generated
	$(BIN)/deepsz reproduce tables
	$(BIN)/deepsz reproduce figures

# AlexNet on CIFAR-10 from its training to its row, as in models/alexnet_cifar10/; needs PyTorch.
CIFAR := build/alexnet_cifar10
CIFAR_PROTOTXT := prototxt/alexnet_cifar10
BFLOAT16 = $(if $(shell grep -m1 -o avx512_bf16 /proc/cpuinfo),--bfloat16)
alexnet-cifar10: $(CIFAR)/dense.caffemodel
	$(BIN)/deepsz reproduce alexnet-cifar10 --weights $< --freeze-body $(CIFAR)/features --confidence 0.9
$(CIFAR)/body.caffemodel: | $(VENV)/.ready
	mkdir -p $(CIFAR)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/deepsz cifar10 data/cifar10
	$(BIN)/python models/alexnet_cifar10/train_body.py data/cifar10 $@ $(BFLOAT16)
$(CIFAR)/dense.caffemodel: $(CIFAR)/body.caffemodel
	$(BIN)/deepsz train $(CIFAR_PROTOTXT)/solver.prototxt --weights $< \
		--freeze-body $(CIFAR)/features --out $@

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Tests on all cores: each process takes a half, or its part, in order, and then some of another's.
PYTEST := OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal
test: lint
	$(PYTEST) -m 'not slow and not mpi'

test-all: lint
	$(PYTEST)

# Open MPI is Debian's and asks for root once; the test itself doesn't.
test-mpi: $(VENV)/.ready
	command -v mpiexec >/dev/null || apt-get install -y --no-install-recommends openmpi-bin libopenmpi-dev
	$(BIN)/pip install --quiet --disable-pip-version-check 'mpi4py>=4'
	$(BIN)/python -m pytest -m mpi

# What was promised of speed, memory and size, as ratios measured here: every bench/bench_NAME.py,
# or with `make bench NAME` that one.
BENCHES := $(patsubst bench/bench_%.py,%,$(wildcard bench/bench_*.py))
.PHONY: $(BENCHES)
bench: $(VENV)/.ready
	@missed=0; for name in $(or $(filter $(BENCHES),$(MAKECMDGOALS)),$(BENCHES)); do \
		$(BIN)/python bench/bench_$$name.py || missed=1; done; exit $$missed
$(BENCHES): bench
	@:

# The Docker image, built for real with or without a Docker engine; a job of its own (docker/README.md).
image:
	docker/image-test.sh --build-only

image-test: $(VENV)/.ready
	docker/image-test.sh

# Damaged and forged files: an error of ours or the right weights, nothing else.
# Then two minutes of libFuzzer for the header, caffemodels, JSON and each codec.
fuzz: $(VENV)/.ready
	$(BIN)/python -m tests.hostile.fuzz --files 100000 --inputs 20000
	$(BIN)/pip install --quiet --disable-pip-version-check --use-pep517 -e '.[fuzz]'
	$(BIN)/python -m tests.hostile.guided --seconds 120

# Damaged streams into the C kernels, built with sanitizers.
KERNELS := $(addprefix deepsz_caffe/codecs/native/,mixing.c planes.c scatter.c)
RUNNING_KERNELS := $(addprefix deepsz_caffe/running/native/,form.c lists.c product.c)
fuzz-kernels:
	mkdir -p build
	$(CC) -g -O1 -std=c99 -Wall -Wextra -fsanitize=address,undefined -fno-sanitize-recover=all \
		-o build/fuzz_kernels tests/hostile/fuzz_kernels.c $(KERNELS)
	build/fuzz_kernels 20000
	$(CC) -g -O1 -std=c99 -Wall -Wextra -fsanitize=address,undefined -fno-sanitize-recover=all \
		-o build/fuzz_running tests/hostile/fuzz_running.c $(RUNNING_KERNELS)
	build/fuzz_running 3000

# The products on ARM's instructions, in an emulator: Debian's gcc-aarch64-linux-gnu and qemu-user.
fuzz-kernels-arm:
	mkdir -p build
	aarch64-linux-gnu-gcc -static -O3 -std=c99 -ffp-contract=off -Wall -Wextra \
		-o build/fuzz_running_arm tests/hostile/fuzz_running.c $(RUNNING_KERNELS)
	qemu-aarch64 build/fuzz_running_arm 3000

clean:
	rm -rf build $(VENV)
