"""Everything between encoded bytes and typed answers; importing this package imports nothing.

In the order of the data, each module knowing only what stands before it:

    errors, contract, frames, rle, results   the nouns: one tree of errors, options, columns, frames, answers
    wire, transport*, remote, dump           the client's side: two protocols, `Client`, files written
    telemetry, preflight, watchdog, settings, memory
                                             the process looks after itself
    graph, preprocess                        frames -> model pixels                          (DALI)
    drawing, postprocess, encode             scores + frames -> masks, pictures, H.264       (DALI, PyAV, Pillow)
    engine                                   chunks of many streams -> one model batch       (torch)
    medium, images, containers, pyav_decode, nvdec, decode
                                             bytes -> chunks of frames         (Pillow, PyAV, NVDEC by DALI)
    tasks                                    one file a task: options in, model output read, answer out
    pipeline                                 the loop over the chunks of one medium
    endpoints, services                      requests of Triton's form -> rows of tensors
    triton, stub_mends, messages             endpoints -> Triton, and what is changed in PyTriton
"""
