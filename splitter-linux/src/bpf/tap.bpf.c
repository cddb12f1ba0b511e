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
#include "discards.h"
#include "dirty.h"
#include "notes.h"
#include "payload.h"
#include "records.h"
#include "requests.h"
#include "tables.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

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
	if (outcome == ENDED)
		return missed(rq, v, CAUSE_UNSEEN);
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
	if (ended(&v)) {
		bpf_ringbuf_discard(r, BPF_RB_NO_WAKEUP);
		return missed(rq, &v, CAUSE_UNSEEN);
	}
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

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct notes);
} handled SEC(".maps");

SEC("tp_btf/block_rq_complete")
int tap_complete(u64 *ctx)
{
	struct request *rq = (struct request *)ctx[0];
	struct view v;
	u32 zero = 0;
	if (!look(rq, &v))
		return 0;
	struct notes *notes = bpf_map_lookup_elem(&handled, &zero);
	if (notes && !leave_note(notes, rq)) {
		__sync_fetch_and_add(&v.control->doubts, 1);
		return missed(rq, &v, CAUSE_WITNESS);
	}
	return completed(rq, (u8)ctx[1], (u32)ctx[2], &v);
}

SEC("tp_btf/block_rq_complete")
int tap_complete2(u64 *ctx)
{
	struct request *rq = (struct request *)ctx[0];
	struct view v;
	u32 zero = 0;
	if (!modifies(rq->cmd_flags))
		return 0;
	struct notes *notes = bpf_map_lookup_elem(&handled, &zero);
	if ((notes && take_note(notes, rq)) || !look(rq, &v))
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
