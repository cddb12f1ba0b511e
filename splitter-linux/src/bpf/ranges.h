/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The walk along the bios of a request. Each bio is one range of sectors, whose content lies in its vectors.
 */
#ifndef TIDEMARK_RANGES_H
#define TIDEMARK_RANGES_H

#include "kernel.h"

/* A discard request carries at most this many ranges (NVMe allows 256). */
#define DISCARD_RANGES_MAX 256

/* Reads a field of a structure whose address is only a number. True on success. */
#define field(to, address, type, member) \
	(!bpf_probe_read_kernel(to, sizeof(*(to)), (const void *)&((type *)(address))->member))

struct range {
	struct bvec_iter at;
	u64 vectors;
};

/* Reads the range of a bio and steps to the next one. False at the end, and when the memory cannot be read: then the
 * bio stays, so a walk that is complete has 0 there. */
inline_always int next_range(u64 *bio, struct range *range)
{
	u64 now = *bio;
	return now && field(&range->at, now, struct bio, bi_iter) && field(&range->vectors, now, struct bio, bi_io_vec) &&
	       field(bio, now, struct bio, bi_next);
}

#endif
