/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The content of a write, copied from its pages into one record.
 */
#ifndef TIDEMARK_PAYLOAD_H
#define TIDEMARK_PAYLOAD_H

#include "ranges.h"
#include "records.h"

/* virtual address of a page's memory = address of its struct page * 64 + page_constant (both modulo 2^64). */
volatile const u64 page_constant = 0;

/* Requests above this size are not captured (limits::FRAME_MAX_BYTES of the protocol). */
#define CAPTURE_MAX_BYTES (8u << 20)

#define HUGE_CHUNK 65536
#define BIG_CHUNK 16384
#define PAGE_CHUNK 4096
#define SECTOR_CHUNK 512

enum outcome { COPIED, FAULTED, NEEDS_SLACK, ENDED };

struct copy {
	struct bpf_dynptr record;
	u64 bio;       /* the next one, as a number */
	u64 vectors;   /* of the current one */
	u32 index;     /* current vector */
	u32 done;      /* bytes of it already copied */
	u32 left;      /* bytes left of the current bio */
	u32 remaining; /* bytes left of the request */
	u32 offset;    /* in the record */
	u32 outcome;
};

/* The slice and the read need constant sizes: the piece is copied in the largest that fits. */
#define copy_exactly(size) \
	do { \
		void *to = bpf_dynptr_data(&c->record, c->offset, size); \
		if (!to || bpf_probe_read_kernel(to, size, (const void *)from)) \
			return 1; \
		n = size; \
	} while (0)

/* Goes on to the next bio. False: there is none. */
inline_always int next_bio(struct copy *c)
{
	struct range range;
	if (!next_range(&c->bio, &range))
		return 0;
	c->vectors = range.vectors;
	c->index = range.at.bi_idx;
	c->done = range.at.bi_bvec_done;
	c->left = range.at.bi_size;
	return 1;
}

/* Copies one piece that is contiguous in memory. Returns 1 to stop; then `outcome` tells why. */
static long copy_piece(u32 step, struct copy *c)
{
	struct bio_vec vector;
	if (!c->remaining) {
		c->outcome = COPIED;
		return 1;
	}
	c->outcome = FAULTED;
	if (!c->left) {
		if (!next_bio(c))
			return 1;
		if (!c->left)
			return 0;
	}
	if (bpf_probe_read_kernel(&vector, sizeof(vector), (const void *)(c->vectors + (u64)c->index * sizeof(vector))))
		return 1;
	u32 n = vector.bv_len - c->done;
	if (vector.bv_len <= c->done)
		return 1;
	if (n > c->left)
		n = c->left;
	if (n > c->remaining)
		n = c->remaining;
	u64 from = vector.bv_page * 64 + page_constant + vector.bv_offset + c->done;
	if (n >= HUGE_CHUNK) {
		copy_exactly(HUGE_CHUNK);
	} else if (n >= BIG_CHUNK) {
		copy_exactly(BIG_CHUNK);
	} else if (n >= PAGE_CHUNK) {
		copy_exactly(PAGE_CHUNK);
	} else if (n >= SECTOR_CHUNK) {
		copy_exactly(SECTOR_CHUNK);
	} else {
		/* A piece that ends inside a sector: only direct I/O from oddly aligned vectors makes those. */
		void *to = bpf_dynptr_data(&c->record, c->offset, SECTOR_CHUNK);
		if (!to) {
			c->outcome = NEEDS_SLACK;
			return 1;
		}
		if (bpf_probe_read_kernel(to, n & (SECTOR_CHUNK - 1), (const void *)from))
			return 1;
	}
	c->offset += n;
	c->remaining -= n;
	c->left -= n;
	c->done += n;
	if (c->done >= vector.bv_len) {
		c->done = 0;
		c->index += 1;
	}
	return 0;
}

/* The most pieces a request is copied in. 8 MiB in sectors is 2^14; more come only from odd vectors: then a miss. */
#define PIECES_MAX (1 << 15)

static __attribute__((noinline)) int capture_data(struct request *rq, struct view *v, u32 slack)
{
	struct copy c = { .outcome = FAULTED };
	if (!v)
		return FAULTED;
	if (bpf_ringbuf_reserve_dynptr(&ring, sizeof(struct record) + v->bytes + slack, 0, &c.record)) {
		bpf_ringbuf_discard_dynptr(&c.record, BPF_RB_NO_WAKEUP);
		return -1;
	}
	if (ended(v)) {
		bpf_ringbuf_discard_dynptr(&c.record, BPF_RB_NO_WAKEUP);
		return ENDED;
	}
	struct record *r = bpf_dynptr_data(&c.record, 0, sizeof(*r));
	/*
	 * Before 6.7 the verifier looks at a single step of a loop, from the values that it knows here, and removes the
	 * branches which that step does not take. So everything the step branches on must come from memory which the
	 * verifier does not follow: the first bio and the length are read again.
	 */
	if (r && field(&c.bio, rq, struct request, bio) && field(&c.remaining, rq, struct request, __data_len) &&
	    next_bio(&c)) {
		fill_issue(r, v);
		c.offset = sizeof(*r);
		bpf_loop(PIECES_MAX, copy_piece, &c, 0);
	}
	if (c.remaining || c.outcome != COPIED) {
		bpf_ringbuf_discard_dynptr(&c.record, BPF_RB_NO_WAKEUP);
		return c.outcome == COPIED ? FAULTED : c.outcome;
	}
	bpf_ringbuf_submit_dynptr(&c.record, BPF_RB_NO_WAKEUP);
	return COPIED;
}

/* The commonest request, one whole page, without the walk. */
struct page_record {
	struct record head;
	u8 data[PAGE_CHUNK];
};

inline_always int is_page(struct request *rq, struct bio_vec *vector)
{
	struct bio *bio = rq->bio;
	if (bio->bi_iter.bi_size != PAGE_CHUNK || bio->bi_iter.bi_idx)
		return 0;
	if (bpf_probe_read_kernel(vector, sizeof(*vector), bio->bi_io_vec))
		return 0;
	u32 done = bio->bi_iter.bi_bvec_done;
	vector->bv_offset += done;
	return vector->bv_len >= done + PAGE_CHUNK;
}

inline_always int capture_page(struct view *v, struct bio_vec *vector)
{
	struct page_record *r = bpf_ringbuf_reserve(&ring, sizeof(*r), 0);
	if (!r)
		return -1;
	if (ended(v)) {
		bpf_ringbuf_discard(r, BPF_RB_NO_WAKEUP);
		return ENDED;
	}
	u64 from = vector->bv_page * 64 + page_constant + vector->bv_offset;
	if (bpf_probe_read_kernel(r->data, PAGE_CHUNK, (const void *)from)) {
		bpf_ringbuf_discard(r, BPF_RB_NO_WAKEUP);
		return FAULTED;
	}
	fill_issue(&r->head, v);
	bpf_ringbuf_submit(r, BPF_RB_NO_WAKEUP);
	return COPIED;
}

#endif
