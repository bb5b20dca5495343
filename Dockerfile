# Container for FLARE: one scan per start, no network, 64 MB of /dev/shm, any user, a read-only root if wanted.
#
#   docker build --target cpu -t 3dcps:cpu .     OpenVINO on the CPU
#   docker build -t 3dcps:latest .               the same, and ONNX Runtime on CUDA; see the last stage for CUDA=
#   docker container run --name 3dcps --rm --network none -m 8g \
#       -v "$PWD/inputs/:/workspace/inputs/" -v "$PWD/outputs/:/workspace/outputs/" \
#       3dcps:cpu /bin/bash -c "sh predict.sh"
#
# A base image is code, too: --build-arg BASE=python:3.11-slim-bookworm@sha256:... builds on the one that you have checked.
# Needs no BuildKit. CUDA_VISIBLE_DEVICES is left to whoever runs the container.

ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
COPY app/requirements-cpu.txt /requirements-cpu.txt
RUN python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --require-hashes -r /requirements-cpu.txt
# What never runs here, 110 MB: tests, headers, static libraries, OpenVINO's plugins for other devices, its readers of
# formats other than ONNX and IR, and the GPU plugin's table of tuned kernels (cache.json).
RUN cd /opt/venv/lib/python3.11/site-packages \
    && find . -depth -type d -name tests -exec rm -r {} + \
    && find . -type f -name '*.a' -delete \
    && rm -r openvino/include openvino/cmake openvino/libs/cache.json \
        openvino/libs/libopenvino_intel_gpu_plugin.so openvino/libs/libopenvino_intel_npu_plugin.so \
    && for format in gguf jax paddle pytorch tensorflow tensorflow_lite; do \
        rm "openvino/libs/libopenvino_${format}_frontend.so."*; done
WORKDIR /workspace
COPY weights weights
COPY predict.sh .
COPY app app
# Readable for --user 1000:1000 whatever the umask of the checkout was. The two folders are where -v mounts.
# Byte code is made here, as pip made it for its packages: a read-only root or a container that lives for one scan could
# not keep it. Without any, every start compiles all that it imports.
RUN chmod -R u=rwX,go=rX . && mkdir inputs outputs && python -m compileall -q app
# The networks in half precision are for GPUs: out of the cpu image.
RUN mkdir /half && find weights -name network-fp16.onnx -exec cp -p --parents {} /half \; -delete

FROM ${BASE} AS runtime
# The official base lacks the standard library's byte code: 0.6 s of every start (Debian's Python has it; then nothing
# is added here). Compiled: 13 MB.
RUN python -m compileall -q -j 0 -x '/(test|tests|idlelib|lib2to3|ensurepip|site-packages|dist-packages)/' \
    "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /workspace
# Python is the container's first process, which the kernel shields from SIGTERM; SIGINT becomes KeyboardInterrupt.
STOPSIGNAL SIGINT
CMD ["sh", "predict.sh"]

FROM runtime AS cpu
COPY --from=build /workspace /workspace

# Last, so the default. Not yet run on a GPU. The app takes ONNX Runtime where it finds an NVIDIA device that works, and
# else OpenVINO on the CPU, as in the cpu target. The build of ONNX Runtime and its libraries is chosen by the driver:
#   --build-arg CUDA=11   NVIDIA driver 450.80.02 or newer, FLARE22's 510 among them; GPUs from Maxwell to Ada
#   --build-arg CUDA=12   525.60.13 or newer; Pascal to Hopper
#   --build-arg CUDA=13   580.65.06 or newer; Turing to Blackwell
FROM runtime AS gpu
ARG CUDA=11
COPY app/requirements-gpu-cuda${CUDA}.txt /opt/requirements-gpu.txt
# Not used: headers, ONNX Runtime's tools, and its provider for TensorRT, which is not here.
RUN pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --require-hashes \
        -r /opt/requirements-gpu.txt \
    && cd /opt/venv/lib/python3.11/site-packages \
    && find nvidia -depth -type d -name include -exec rm -r {} + \
    && rm -r onnxruntime/transformers onnxruntime/tools onnxruntime/quantization \
        onnxruntime/capi/libonnxruntime_providers_tensorrt.so
# What NVIDIA's container runtime mounts: libcuda (compute) and the management library NVML (utility).
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build /workspace /workspace
COPY --from=build /half /workspace
