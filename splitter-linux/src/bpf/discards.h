/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Discard requests: a record for each of their ranges.
 */
#ifndef TIDEMARK_DISCARDS_H
#define TIDEMARK_DISCARDS_H

#include "ranges.h"
#include "records.h"

/* One record per range of a discard request, at issue or at completion; the range's number makes the key of each
 * unique (a kernel address has its upper 16 bits set). */
struct emission {
	struct view v;
	u64 bio;
	u32 type;
	u32 bytes;
	u32 status;
	u32 failed;
};

static long emit_range(u32 step, struct emission *e)
{
	struct range range;
	if (!e->bio)
		return 1;
	struct record *r = NULL;
	if (next_range(&e->bio, &range))
		r = bpf_ringbuf_reserve(&ring, sizeof(*r), 0);
	if (!r) {
		e->failed = 1;
		return 1;
	}
	if (ended(&e->v)) {
		bpf_ringbuf_discard(r, BPF_RB_NO_WAKEUP);
		e->failed = 1;
		return 1;
	}
	e->v.sector = range.at.bi_sector;
	e->v.bytes = range.at.bi_size;
	fill_issue(r, &e->v);
	r->request ^= (u64)step << 48;
	if (e->type == RECORD_COMPLETE) {
		r->type = RECORD_COMPLETE;
		/* A request completed in part is left to the reader as one that failed: all of it is read again. */
		r->bytes = e->bytes ? range.at.bi_size : 0;
		r->status = e->status;
	}
	bpf_ringbuf_submit(r, BPF_RB_NO_WAKEUP);
	return 0;
}

static __attribute__((noinline)) int emit_discard(struct request *rq, struct emission *e)
{
	if (!e)
		return 1;
	if (!field(&e->bio, rq, struct request, bio))
		return 1;
	bpf_loop(DISCARD_RANGES_MAX, emit_range, e, 0);
	return e->failed || e->bio;
}

#endif
