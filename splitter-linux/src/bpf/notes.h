/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Notes that the two completion programs leave each other.
 *
 * The problem. The kernel skips a program whose previous run on this CPU has not ended (recursion protection), so an
 * interrupt that completes a request while a completion program runs would be lost to it. Hence two programs are
 * attached to the completion, and they run one after the other for each event: the first handles it and leaves a note;
 * the second takes the note, or, finding none, handles what the first was skipped for. An event must be handled once:
 * never is a miss (which the witness finds), twice makes the witness blind to a later miss of as many sectors.
 *
 * What can happen. A tracepoint calls its programs with preemption disabled, so on one CPU events nest like calls: an
 * event that begins inside another one ends before that goes on. Let E be an event with its steps first(E), second(E),
 * and F one that an interrupt brings in between.
 *
 *   F inside first(E)      first(F) is skipped, second(F) finds no note and handles F.
 *   F between the two      first(F) handles and notes F, second(F) takes that note. E's note must survive.
 *   F inside second(E)     first(F) handles and notes F, second(F) is skipped: F's note is left over.
 *   G inside both, which needs three levels: both are skipped. The witness finds it.
 *
 * Why it is right.
 *  1. A note is keyed by the request and by what tells this event from others of the same request: when the request
 *     was allocated, where it begins and how long it is. Two requests never share a note, and a note left over is not
 *     taken for the next use of the request's memory.
 *  2. A note that is waiting for its second program is never overwritten. A place counts as free when it is empty,
 *     holds an older note of the same request (one request has one event at a time), or describes a request that has
 *     changed since. The request of a waiting note cannot have changed: the tracepoint is called before the block
 *     layer touches it, and has not returned. A left-over one has: its completion took its length away. So left-over
 *     notes are replaced by themselves; they cost a look at the request and nothing else.
 *  3. Only the first program fills places and only the second empties them, each by one store of `request`. An
 *     interrupt before the store sees the place as it was, one after it as it is; the rest of a note is written before.
 *  4. Three levels (task, soft and hard interrupt) can wait at once, so NOTES places are enough unless more are held
 *     by left-over notes that look alive: those of flushes, which have no length to lose, until the request is used
 *     again. When all are held, doubt counts as missed: the first program raises the generation and the count of
 *     doubts, which user space takes for a mismatch of the witness, and forgets all notes; the second handles the event.
 *
 * The notes of a CPU fill four cache lines, of which one is touched unless events nest.
 */
#ifndef TIDEMARK_NOTES_H
#define TIDEMARK_NOTES_H

#include "ranges.h"

#ifndef NOTES
#define NOTES 8
#endif

/* Where a test on this machine's own processor lets an interrupt happen. */
#ifndef INTERRUPT
#define INTERRUPT()
#endif

struct note {
	u64 request; /* 0: none */
	u64 started;
	u64 sector;
	u64 bytes;
};

struct notes {
	struct note at[NOTES];
};

inline_always void describe(struct request *rq, struct note *note)
{
	note->request = (u64)rq;
	note->started = rq->start_time_ns;
	note->sector = rq->__sector;
	note->bytes = rq->__data_len;
}

inline_always int same(const struct note *a, const struct note *b)
{
	return a->request == b->request && a->started == b->started && a->sector == b->sector && a->bytes == b->bytes;
}

/* Whether the request of a note is no longer what it says. */
inline_always int left_over(const struct note *note)
{
	u64 started, sector;
	u32 bytes;
	u64 request = note->request;
	return !field(&started, request, struct request, start_time_ns) ||
	       !field(&sector, request, struct request, __sector) ||
	       !field(&bytes, request, struct request, __data_len) || started != note->started ||
	       sector != note->sector || bytes != note->bytes;
}

inline_always void set_request(struct note *place, u64 request)
{
	INTERRUPT();
	__asm__ volatile("" ::: "memory");
	*(volatile u64 *)&place->request = request;
	INTERRUPT();
}

/* The first program: notes this event. False: no place is free, and all notes are forgotten. */
inline_always int leave_note(struct notes *notes, struct request *rq)
{
	struct note now;
	describe(rq, &now);
#pragma unroll
	for (int i = 0; i < NOTES; i++) {
		struct note *place = &notes->at[i];
		u64 held = *(volatile u64 *)&place->request;
		INTERRUPT();
		if (held && held != now.request && !left_over(place))
			continue;
		place->started = now.started;
		place->sector = now.sector;
		place->bytes = now.bytes;
		set_request(place, now.request);
		return 1;
	}
#pragma unroll
	for (int i = 0; i < NOTES; i++)
		set_request(&notes->at[i], 0);
	return 0;
}

/* The second program: whether the first one handled this event. */
inline_always int take_note(struct notes *notes, struct request *rq)
{
	struct note now;
	describe(rq, &now);
#pragma unroll
	for (int i = 0; i < NOTES; i++) {
		if (same(&notes->at[i], &now)) {
			set_request(&notes->at[i], 0);
			return 1;
		}
		INTERRUPT();
	}
	return 0;
}

#endif
