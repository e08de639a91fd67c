/* An engine of tensors as the loops see it: included after all else that they call. See tensor_ring.h. */
static const char *last_error(void *self)
{
    return ((engine *)self)->error;
}

static uint64_t copied(void *self)
{
    return __atomic_load_n(&((engine *)self)->counters.copied_nbytes, __ATOMIC_RELAXED);
}

static const cb_channel_ops ops = {
    .abi_version = COMMBENCH_ABI_VERSION,
    .struct_size = sizeof(cb_channel_ops),
    .prepare = prepare,
    .finish = finish,
    .post = post,
    .poll = poll,
    .exchange = exchange,
    .accept = accept,
    .answer = answer,
    .progress = progress,
    .last_error = last_error,
    .copied = copied,
};
