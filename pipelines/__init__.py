"""Everything between encoded bytes and typed answers; importing this package imports nothing.

In the order of the data:

    contract     Options and the shape of an answer as Triton tensors      (numpy)
    errors       one tree of errors with stable codes                      (stdlib)
    results      answers as frozen columns                                 (numpy)
    frames       FrameBatch, Geometry                                      (numpy)
    decode       bytes -> FrameBatch chunks: picks a decoder, PyAV, images
    nvdec        bytes -> FrameBatch chunks on the GPU                     (DALI, NVDEC)
    preprocess   frames -> model pixels                                    (DALI)
    engine       chunks of many streams -> one model batch -> split again  (torch)
    postprocess  scores + frames -> mask, extracted class, overlay         (DALI)
    encode       pixels -> JPEG, PNG, RLE, H.264                           (PyAV, Pillow)
    tasks        one file a task: options in, model output read, answer out
    pipeline     Pipeline.run: the loop over the chunks of one medium
    endpoints    requests of Triton's form -> Pipeline -> rows of tensors
    transport    the client's two protocols                                (gRPC, HTTP)
    preflight, watchdog, telemetry   the process looks after itself
"""
