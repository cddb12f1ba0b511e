/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The dirty maps: one bit per 4 KiB of each disk. A request that is not captured whole is marked here, at issue and
 * again at completion.
 */
#ifndef TIDEMARK_DIRTY_H
#define TIDEMARK_DIRTY_H

#include "ranges.h"
#include "requests.h"
#include "tables.h"

/* One value of a dirty map: one bit per 4 KiB, so 128 MiB of disk per page of map. */
#define DIRTY_WORDS 512
struct dirty_page {
	u64 words[DIRTY_WORDS];
};

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

/* The ranges of a discard request are its bios: drivers with several ranges per command merge discards that are not
 * adjacent. All other requests are one range. */
struct ranges {
	u64 bio;
	u32 slot;
};

static long mark_bio(u32 step, struct ranges *r)
{
	struct range range;
	if (!next_range(&r->bio, &range))
		return 1;
	mark_range(r->slot, range.at.bi_sector, range.at.bi_size >> 9);
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

#endif
