"""A histogram of durations with three significant digits, which can be merged with others.

It uses HdrHistogram's layout: each value below 2,048 has its own bucket; above, every power of two is split
into 1,024 equal buckets, so that a bucket is never wider than 1/1024 of its values. Recording counts leading
zeros and adds. Two histograms are merged by adding their buckets, which cannot be done with percentiles. The
264 KiB of buckets are zero pages until they are used: a run whose values lie within three powers of two uses
24 KiB.
"""

from libc.stdlib cimport calloc, free
from libc.string cimport memset

__all__ = ["Histogram"]

cdef extern from *:
    int clz "__builtin_clzll"(unsigned long long value) nogil

cdef enum:
    _HALF_BITS = 10

cdef uint64_t _LARGEST = (<uint64_t>1 << 42) - 1


cdef inline unsigned int _bucket(uint64_t value) noexcept nogil:
    cdef int shift = 63 - clz(value | 1) - _HALF_BITS
    if shift < 0:
        shift = 0
    return <unsigned int>((<uint64_t>shift << _HALF_BITS) + (value >> shift))


cdef inline uint64_t _highest(unsigned int bucket) noexcept nogil:
    """Return the largest value of a bucket."""
    cdef unsigned int shift = 0
    if bucket >= 2 << _HALF_BITS:
        shift = (bucket >> _HALF_BITS) - 1
    return ((<uint64_t>bucket - (<uint64_t>shift << _HALF_BITS) + 1) << shift) - 1


cdef int hist_init(hist_t* hist) noexcept nogil:
    """Prepare an empty histogram; return -1 without memory."""
    memset(hist, 0, sizeof(hist_t))
    hist.counts = <uint64_t*>calloc(HIST_BUCKETS, sizeof(uint64_t))
    return 0 if hist.counts != NULL else -1


cdef void hist_free(hist_t* hist) noexcept nogil:
    """Free the buckets of a histogram."""
    free(hist.counts)
    hist.counts = NULL


cdef void hist_reset(hist_t* hist) noexcept nogil:
    """Empty a histogram. Clears only the used buckets, so that zero pages stay zero pages."""
    cdef uint64_t* counts = hist.counts
    if hist.total:
        memset(counts + _bucket(hist.min), 0, (_bucket(hist.max) - _bucket(hist.min) + 1) * sizeof(uint64_t))
    memset(hist, 0, sizeof(hist_t))
    hist.counts = counts


cdef void hist_record(hist_t* hist, int64_t value, uint64_t count) noexcept nogil:
    """Add a value `count` times. O(1), about 3 ns."""
    cdef uint64_t clean = 0 if value < 0 else <uint64_t>value
    if clean > _LARGEST:
        clean = _LARGEST
        hist.clamped += count
    if hist.total == 0 or clean < hist.min:
        hist.min = clean
    if clean > hist.max:
        hist.max = clean
    hist.total += count
    hist.sum += clean * count
    hist.counts[_bucket(clean)] += count


cdef uint64_t _percentile(hist_t* hist, double percent) noexcept nogil:
    cdef double exact = percent / 100.0 * <double>hist.total
    cdef uint64_t rank = <uint64_t>exact
    cdef uint64_t seen = 0
    cdef unsigned int bucket, last
    if hist.total == 0:
        return 0
    if <double>rank < exact:
        rank += 1
    rank = min(max(rank, 1), hist.total)
    last = _bucket(hist.max)
    for bucket in range(_bucket(hist.min), last + 1):
        seen += hist.counts[bucket]
        if seen >= rank:
            return min(_highest(bucket), hist.max)
    return hist.max


cdef dict hist_to_dict(hist_t* hist, bint with_counts):
    """Return the summary as results.HistogramDict."""
    cdef unsigned int bucket
    cdef dict counts
    cdef dict summary = {
        "count": hist.total,
        "min": hist.min,
        "mean": <double>hist.sum / <double>hist.total if hist.total else 0.0,
        "p50": _percentile(hist, 50.0),
        "p90": _percentile(hist, 90.0),
        "p99": _percentile(hist, 99.0),
        "p99_9": _percentile(hist, 99.9),
        "max": hist.max,
        "clamped": hist.clamped,
    }
    if with_counts:
        counts = {}
        if hist.total:
            for bucket in range(_bucket(hist.min), _bucket(hist.max) + 1):
                if hist.counts[bucket]:
                    counts[str(bucket)] = hist.counts[bucket]
        summary["counts"] = counts
    return summary


cdef class Histogram:
    """Counts of values from 0 to 2**42-1 (in ns: 73 minutes), each kept within 0.1 %."""

    def __cinit__(self):
        """Allocate the buckets of the histogram."""
        if hist_init(&self.hist) < 0:
            raise MemoryError

    def __dealloc__(self):
        """Free the buckets of the histogram."""
        hist_free(&self.hist)

    def record(self, value, count=1):
        """Add a value `count` times."""
        cdef int64_t clean = max(-1, min(value, 2**62))
        if count < 1:
            raise ValueError("count must be >= 1")
        hist_record(&self.hist, clean, count)

    def record_many(self, values):
        """Add each of several values once."""
        for value in values:
            self.record(value)

    def merge(self, other):
        """Add all counts of another histogram."""
        cdef Histogram source = <Histogram?>other
        cdef hist_t* ours = &self.hist
        cdef hist_t* theirs = &source.hist
        cdef unsigned int bucket
        if theirs.total == 0:
            return
        for bucket in range(_bucket(theirs.min), _bucket(theirs.max) + 1):
            ours.counts[bucket] += theirs.counts[bucket]
        ours.min = theirs.min if ours.total == 0 else min(ours.min, theirs.min)
        ours.max = max(ours.max, theirs.max)
        ours.total += theirs.total
        ours.sum += theirs.sum
        ours.clamped += theirs.clamped

    def percentile(self, percent):
        """Return the value that `percent` of the samples do not exceed."""
        if not 0 <= percent <= 100:
            raise ValueError("percent must be 0 to 100")
        return _percentile(&self.hist, percent)

    def to_dict(self, *, with_counts=False):
        """Return the summary; `with_counts` adds the buckets."""
        return hist_to_dict(&self.hist, with_counts)

    @classmethod
    def from_dict(cls, data):
        """Create a histogram from `to_dict(with_counts=True)`."""
        cdef Histogram made = cls()
        if "counts" not in data:
            raise ValueError("the summary has no counts")
        for bucket, count in data["counts"].items():
            if not 0 <= int(bucket) < HIST_BUCKETS:
                raise ValueError("bucket out of range")
            made.hist.counts[<unsigned int>int(bucket)] = count
            made.hist.total += <uint64_t>count
        if made.hist.total:
            made.hist.min = data["min"]
            made.hist.max = data["max"]
        if made.hist.total != data["count"]:
            raise ValueError("counts do not add up")
        # The mean is exact only to the precision of a double.
        made.hist.sum = round(data["mean"] * data["count"])
        made.hist.clamped = data["clamped"]
        return made

    def __len__(self):
        """Return how many values were recorded."""
        return self.hist.total
