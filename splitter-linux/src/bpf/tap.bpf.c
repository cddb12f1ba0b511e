// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * The write tap: copies every write request of the protected disks into one ring buffer, just before the driver gets
 * it, and reports every completion there.
 *
 * One record is one request: it is reserved with its exact size (bpf_ringbuf_reserve_dynptr, Linux 5.19), so its
 * place in the order is a single position. Reservations are serialised by the ring's lock and happen before the
 * request reaches the hardware; if B was submitted after A completed, A's record was reserved before B's. Hence every
 * prefix of the ring in reservation order is a state in which the machine could have crashed. The reader stops at the
 * first record which is not submitted yet.
 *
 * A request that cannot be captured whole is a miss: its range is marked in the dirty map first, then the generation
 * is raised, both before the program returns, so before the request is issued. From then on nothing is captured and
 * every request is marked at issue and at completion, until user space has drained the ring and restarts capture.
 *
 * The programs never wait, fail or change a request. Layouts shared with user space: src/capture/layout.rs.
 */
#include "kernel.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* ---- shared with user space ---- */

#define SLOTS 64
#define CAUSES 16
/* Requests above this size are not captured (limits::FRAME_MAX_BYTES of the protocol). */
#define CAPTURE_MAX_BYTES (8u << 20)
/* A discard request carries at most this many ranges (NVMe allows 256). */
#define DISCARD_RANGES_MAX 256

enum record_type { RECORD_ISSUE = 1, RECORD_COMPLETE = 2, RECORD_REQUEUE = 3 };
enum kind { KIND_DATA = 1, KIND_ZEROES = 2, KIND_DISCARD = 3, KIND_FLUSH = 4, KIND_UNSUPPORTED = 5 };
enum flag { FLAG_FUA = 1, FLAG_PREFLUSH = 2, FLAG_SECURE_ERASE = 4 };
/* Numbers of GapCause in the protocol. */
enum cause {
	CAUSE_RING_FULL = 2,
	CAUSE_FAULT = 3,
	CAUSE_TOO_LARGE = 5,
	CAUSE_UNSUPPORTED = 12,
};

/* 40 bytes; the payload of a data record follows. */
struct record {
	u8 type;
	u8 kind;
	u16 slot;
	u32 generation;
	u64 request;
	u64 start_sector;
	u32 sectors;
	u32 flags;
	union {
		u64 boottime_ns; /* issue */
		struct { /* completion */
			u32 bytes;
			u32 status;
		};
	};
};

struct control {
	/* generation << 1 | FULL */
	u64 state;
	u64 cause;
	/* Producer position at the last restart; only user space reads and writes it. */
	u64 generation_start;
	u64 reserved;
	/* By cause, since the programs were loaded. */
	u64 misses[CAUSES];
};
#define FULL 1ull

struct slot {
	u64 completed_write_sectors;
	u64 completed_discard_sectors;
	/* Raised after every mark: user space looks at the map only when it moved. */
	u64 marks;
	/* The map does not say everything: take the whole disk as dirty. */
	u64 whole;
	u64 reserved[4];
};

/* One value of a dirty map: one bit per 4 KiB, so 128 MiB of disk per page of map. */
#define DIRTY_WORDS 512
struct dirty_page {
	u64 words[DIRTY_WORDS];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 << 20);
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct control);
} control SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, SLOTS);
	__type(key, u32);
	__type(value, struct slot);
} slots SEC(".maps");

/* dev_t of a whole disk → slot. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SLOTS);
	__type(key, u32);
	__type(value, u32);
} disks SEC(".maps");

struct dirty_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE | BPF_F_INNER_MAP);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(u32));
	__uint(value_size, sizeof(struct dirty_page));
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, SLOTS);
	__type(key, u32);
	__array(values, struct dirty_map);
} dirty SEC(".maps");

/* virtual address of a page's memory = address of its struct page * 64 + page_constant (both modulo 2^64). */
volatile const u64 page_constant = 0;

/* ---- dirty map ---- */

struct marking {
	void *map;
	struct slot *slot;
	u64 first_block;
	u64 last_block;
};

static long mark_word(u32 step, struct marking *m)
{
	/* Counting a field up instead would keep the verifier from seeing that all steps are alike. */
	u64 first = m->first_block, last = m->last_block, word = (first >> 6) + step;
	u64 low = word << 6, mask = ~0ull;
	u32 page = word >> 9;
	struct dirty_page *value = bpf_map_lookup_elem(m->map, &page);
	if (!value) {
		m->slot->whole = 1;
		return 1;
	}
	if (first > low)
		mask &= ~0ull << ((first - low) & 63);
	if (last < low + 63)
		mask &= ~0ull >> ((low + 63 - last) & 63);
	u64 *target = &value->words[word & (DIRTY_WORDS - 1)];
	if (mask == ~0ull)
		*(volatile u64 *)target = mask;
	else
		__sync_fetch_and_or(target, mask);
	return 0;
}

static __attribute__((noinline)) int mark_range(u32 index, u64 sector, u64 sectors)
{
	struct slot *slot = bpf_map_lookup_elem(&slots, &index);
	if (!slot || !sectors)
		return 0;
	struct marking m = {
		.slot = slot,
		.first_block = sector >> 3,
		.last_block = (sector + sectors - 1) >> 3,
	};
	m.map = bpf_map_lookup_elem(&dirty, &index);
	/* A request's length is 32 bits of bytes, so 2^14 words and a partial one at each end. */
	u64 words = (m.last_block >> 6) - (m.first_block >> 6) + 1;
	if (m.map && words <= (1 << 14) + 1)
		bpf_loop(words, mark_word, &m, 0);
	else
		slot->whole = 1;
	__sync_fetch_and_add(&slot->marks, 1);
	return 0;
}

static __attribute__((noinline)) int mark_whole(u32 index)
{
	struct slot *slot = bpf_map_lookup_elem(&slots, &index);
	if (slot) {
		slot->whole = 1;
		__sync_fetch_and_add(&slot->marks, 1);
	}
	return 0;
}

/* ---- requests ---- */

/* What every program needs to know about a request of a protected disk. */
struct view {
	struct control *control;
	u64 state;
	u64 request;
	u64 sector;
	u32 bytes;
	u32 cmd_flags;
	u32 slot;
	u32 kind;
};

inline_always u32 kind_of(u32 cmd_flags)
{
	switch (cmd_flags & REQ_OP_MASK) {
	case REQ_OP_WRITE:
		return KIND_DATA;
	case REQ_OP_FLUSH:
		return KIND_FLUSH;
	case REQ_OP_DISCARD:
	case REQ_OP_SECURE_ERASE:
		return KIND_DISCARD;
	case REQ_OP_WRITE_ZEROES:
		return KIND_ZEROES;
	}
	return KIND_UNSUPPORTED;
}

inline_always int modifies(u32 cmd_flags)
{
	return cmd_flags & 1 || (cmd_flags & REQ_OP_MASK) == REQ_OP_FLUSH;
}

/* False: a read, or not a protected disk. */
inline_always int look(struct request *rq, struct view *v)
{
	u32 cmd_flags = rq->cmd_flags;
	if (!modifies(cmd_flags))
		return 0;
	u32 dev = rq->q->disk->part0->bd_dev, zero = 0;
	u32 *slot = bpf_map_lookup_elem(&disks, &dev);
	if (!slot)
		return 0;
	struct control *control_value = bpf_map_lookup_elem(&control, &zero);
	if (!control_value)
		return 0;
	v->control = control_value;
	v->state = *(volatile u64 *)&control_value->state;
	v->request = (u64)rq;
	v->cmd_flags = cmd_flags;
	v->slot = *slot;
	v->kind = kind_of(cmd_flags);
	v->bytes = rq->__data_len;
	v->sector = v->kind == KIND_FLUSH ? 0 : rq->__sector;
	return 1;
}

/* Reads a field of a structure whose address is only a number. True on success. */
#define field(to, address, type, member) \
	(!bpf_probe_read_kernel(to, sizeof(*(to)), (const void *)&((type *)(address))->member))

/* The ranges of a discard request are its bios: drivers with several ranges per command merge discards that are not
 * adjacent. All other requests are one range. */
struct ranges {
	u64 bio;
	u32 slot;
};

static long mark_bio(u32 step, struct ranges *r)
{
	struct bvec_iter it;
	u64 next;
	if (!r->bio)
		return 1;
	if (!field(&it, r->bio, struct bio, bi_iter) || !field(&next, r->bio, struct bio, bi_next))
		return 1;
	mark_range(r->slot, it.bi_sector, it.bi_size >> 9);
	r->bio = next;
	return 0;
}

static __attribute__((noinline)) int mark_request(struct request *rq, u32 slot, u32 kind)
{
	if (kind == KIND_UNSUPPORTED)
		return mark_whole(slot);
	if (kind == KIND_FLUSH)
		return 0;
	if (kind == KIND_DISCARD) {
		struct ranges r = { .slot = slot };
		if (!field(&r.bio, rq, struct request, bio))
			return mark_whole(slot);
		bpf_loop(DISCARD_RANGES_MAX, mark_bio, &r, 0);
		if (r.bio)
			mark_whole(slot);
		return 0;
	}
	return mark_range(slot, rq->__sector, rq->__data_len >> 9);
}

/* The generation ends here. The caller has marked the range: a reader that sees the new state sees the marks. */
static __attribute__((noinline)) int raise_generation(struct control *c, u64 seen, u32 cause)
{
	if (!c)
		return 0;
	if (seen & FULL && __sync_val_compare_and_swap(&c->state, seen, (seen & ~FULL) + 2) == seen)
		c->cause = cause;
	if (cause < CAUSES)
		__sync_fetch_and_add(&c->misses[cause], 1);
	return 0;
}

inline_always int missed(struct request *rq, struct view *v, u32 cause)
{
	mark_request(rq, v->slot, v->kind);
	raise_generation(v->control, v->state, cause);
	return 0;
}

/* ---- records ---- */

inline_always void fill_issue(struct record *r, const struct view *v)
{
	u32 flags = 0;
	if (v->cmd_flags & (1u << enum_value(enum req_flag_bits, __REQ_FUA)))
		flags |= FLAG_FUA;
	if (v->cmd_flags & (1u << enum_value(enum req_flag_bits, __REQ_PREFLUSH)))
		flags |= FLAG_PREFLUSH;
	if ((v->cmd_flags & REQ_OP_MASK) == REQ_OP_SECURE_ERASE)
		flags |= FLAG_SECURE_ERASE;
	r->type = RECORD_ISSUE;
	r->kind = v->kind;
	r->slot = v->slot;
	r->generation = v->state >> 1;
	r->request = v->request;
	r->start_sector = v->sector;
	r->sectors = v->bytes >> 9;
	r->flags = flags;
	r->boottime_ns = bpf_ktime_get_boot_ns();
}

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
	struct bvec_iter it;
	u64 next;
	if (!e->bio)
		return 1;
	struct record *r = NULL;
	if (field(&it, e->bio, struct bio, bi_iter) && field(&next, e->bio, struct bio, bi_next))
		r = bpf_ringbuf_reserve(&ring, sizeof(*r), 0);
	if (!r) {
		e->failed = 1;
		return 1;
	}
	e->v.sector = it.bi_sector;
	e->v.bytes = it.bi_size;
	fill_issue(r, &e->v);
	r->request ^= (u64)step << 48;
	if (e->type == RECORD_COMPLETE) {
		r->type = RECORD_COMPLETE;
		/* A request completed in part is left to the reader as one that failed: all of it is read again. */
		r->bytes = e->bytes ? it.bi_size : 0;
		r->status = e->status;
	}
	bpf_ringbuf_submit(r, BPF_RB_NO_WAKEUP);
	e->bio = next;
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

/* ---- payload ---- */

#define HUGE_CHUNK 65536
#define BIG_CHUNK 16384
#define PAGE_CHUNK 4096
#define SECTOR_CHUNK 512

enum outcome { COPIED, FAULTED, NEEDS_SLACK };

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
	struct bvec_iter it;
	u64 bio = c->bio;
	if (!bio || !field(&it, bio, struct bio, bi_iter) || !field(&c->vectors, bio, struct bio, bi_io_vec) ||
	    !field(&c->bio, bio, struct bio, bi_next))
		return 0;
	c->index = it.bi_idx;
	c->done = it.bi_bvec_done;
	c->left = it.bi_size;
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
	u64 from = vector->bv_page * 64 + page_constant + vector->bv_offset;
	if (bpf_probe_read_kernel(r->data, PAGE_CHUNK, (const void *)from)) {
		bpf_ringbuf_discard(r, BPF_RB_NO_WAKEUP);
		return FAULTED;
	}
	fill_issue(&r->head, v);
	bpf_ringbuf_submit(r, BPF_RB_NO_WAKEUP);
	return COPIED;
}

/* ---- programs ---- */

inline_always int issue_data(struct request *rq, struct view *v)
{
	struct bio_vec vector;
	int outcome;
	if (v->bytes == 0)
		return 0;
	if (v->bytes > CAPTURE_MAX_BYTES)
		return missed(rq, v, CAUSE_TOO_LARGE);
	/* Memory of a peer device is not RAM: reading it through the linear map is not allowed. */
	if (enum_exists(enum req_flag_bits___p2p, __REQ_P2PDMA) &&
	    v->cmd_flags & (1u << enum_value(enum req_flag_bits___p2p, __REQ_P2PDMA)))
		return missed(rq, v, CAUSE_UNSUPPORTED);
	if (v->bytes == PAGE_CHUNK && is_page(rq, &vector)) {
		outcome = capture_page(v, &vector);
	} else {
		outcome = capture_data(rq, v, 0);
		if (outcome == NEEDS_SLACK)
			outcome = capture_data(rq, v, SECTOR_CHUNK);
	}
	if (outcome == COPIED)
		return 0;
	return missed(rq, v, outcome < 0 ? CAUSE_RING_FULL : CAUSE_FAULT);
}

SEC("tp_btf/block_rq_issue")
int tap_issue(u64 *ctx)
{
	struct request *rq = (struct request *)ctx[0];
	struct view v;
	if (!look(rq, &v))
		return 0;
	if (!(v.state & FULL)) {
		mark_request(rq, v.slot, v.kind);
		return 0;
	}
	if (v.kind == KIND_DATA)
		return issue_data(rq, &v);
	if (v.kind == KIND_UNSUPPORTED)
		return missed(rq, &v, CAUSE_UNSUPPORTED);
	if (v.kind == KIND_DISCARD) {
		struct emission e = { .v = v, .type = RECORD_ISSUE };
		if (emit_discard(rq, &e))
			missed(rq, &v, CAUSE_RING_FULL);
		return 0;
	}
	if (v.kind == KIND_FLUSH)
		v.bytes = 0;
	struct record *r = bpf_ringbuf_reserve(&ring, sizeof(*r), 0);
	if (!r)
		return missed(rq, &v, CAUSE_RING_FULL);
	fill_issue(r, &v);
	bpf_ringbuf_submit(r, BPF_RB_NO_WAKEUP);
	return 0;
}

inline_always void count(u32 index, u32 kind, u32 bytes)
{
	struct slot *slot = bpf_map_lookup_elem(&slots, &index);
	if (!slot)
		return;
	if (kind == KIND_DISCARD)
		__sync_fetch_and_add(&slot->completed_discard_sectors, bytes >> 9);
	else if (bytes)
		__sync_fetch_and_add(&slot->completed_write_sectors, bytes >> 9);
}

/*
 * A program does not nest in itself: while it runs on a CPU, an interrupt there that completes another request skips
 * it. With drivers that complete in threads (loop, for one) this happens every few seconds. So completion has two
 * programs, which run one after the other for each event. The first notes the request and handles it; the second
 * finds the note and returns, or handles what the first was skipped for. A note is per CPU; both run for an event
 * without another on this CPU in between, except nested ones, whose requests are others.
 */
#define NOTES 64
struct notes {
	u64 requests[NOTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct notes);
} handled SEC(".maps");

inline_always u64 *note_of(struct request *rq)
{
	u32 zero = 0;
	u64 number = 0;
	struct notes *notes = bpf_map_lookup_elem(&handled, &zero);
	/* The argument itself, as a number: verified pointers cannot be shifted. */
	bpf_probe_read_kernel(&number, sizeof(number), &rq);
	return notes ? &notes->requests[((number >> 6) ^ (number >> 12)) & (NOTES - 1)] : NULL;
}

/* Runs before the block layer accounts the request, so /sys/block/DISK/stat is never ahead of what was counted here. */
inline_always int completed(struct request *rq, u32 status, u32 bytes, const struct view *seen)
{
	struct view v = *seen;
	count(v.slot, v.kind, bytes);
	if (!(v.state & FULL)) {
		mark_request(rq, v.slot, v.kind);
		return 0;
	}
	/* The second completion of a write followed by a flush: its data was reported when it was written. */
	if (v.kind == KIND_UNSUPPORTED || (v.kind == KIND_DATA && !v.bytes))
		return 0;
	if (v.kind == KIND_DISCARD) {
		struct emission e = { .v = v, .type = RECORD_COMPLETE, .status = status };
		e.bytes = bytes >= v.bytes ? bytes : 0;
		if (emit_discard(rq, &e))
			missed(rq, &v, CAUSE_RING_FULL);
		return 0;
	}
	struct record *r = bpf_ringbuf_reserve(&ring, sizeof(*r), 0);
	if (!r)
		return missed(rq, &v, CAUSE_RING_FULL);
	r->type = RECORD_COMPLETE;
	r->kind = v.kind;
	r->slot = v.slot;
	r->generation = v.state >> 1;
	r->request = v.request;
	r->start_sector = v.sector;
	r->sectors = v.kind == KIND_FLUSH ? 0 : v.bytes >> 9;
	r->flags = 0;
	r->bytes = v.kind == KIND_FLUSH ? 0 : bytes;
	r->status = status;
	bpf_ringbuf_submit(r, BPF_RB_NO_WAKEUP);
	return 0;
}

SEC("tp_btf/block_rq_complete")
int tap_complete(u64 *ctx)
{
	struct request *rq = (struct request *)ctx[0];
	struct view v;
	if (!look(rq, &v))
		return 0;
	u64 *note = note_of((struct request *)ctx[0]);
	if (note)
		*note = v.request;
	return completed(rq, (u8)ctx[1], (u32)ctx[2], &v);
}

SEC("tp_btf/block_rq_complete")
int tap_complete2(u64 *ctx)
{
	struct request *rq = (struct request *)ctx[0];
	struct view v;
	if (!modifies(rq->cmd_flags))
		return 0;
	u64 *note = note_of(rq);
	if (note && *note == (u64)rq) {
		*note = 0;
		return 0;
	}
	if (!look(rq, &v))
		return 0;
	return completed(rq, (u8)ctx[1], (u32)ctx[2], &v);
}

/* The driver was busy: the request goes back to the queue and will be issued again, under the same address. */
SEC("tp_btf/block_rq_requeue")
int tap_requeue(u64 *ctx)
{
	struct request *rq = (struct request *)ctx[0];
	struct view v;
	if (!look(rq, &v) || !(v.state & FULL) || v.kind == KIND_UNSUPPORTED)
		return 0;
	struct record *r = bpf_ringbuf_reserve(&ring, sizeof(*r), 0);
	if (!r)
		return missed(rq, &v, CAUSE_RING_FULL);
	fill_issue(r, &v);
	r->type = RECORD_REQUEUE;
	bpf_ringbuf_submit(r, BPF_RB_NO_WAKEUP);
	return 0;
}
