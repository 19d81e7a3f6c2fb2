// The transform, compiled once for each instruction set with HADACORE_ISA as its namespace.
#include "call.hpp"
#include "columns.hpp"
#include "large.hpp"
#include "quantize.hpp"

namespace HADACORE_ISA {

// Powers of two below a block, rows without gaps: the rows are one run of elements, whatever their number. Counts blocks.
template <class E> static void dense_short_rows(void* context, int64_t begin, int64_t end) {
    const Call<E>& call = *static_cast<Call<E>*>(context);
    constexpr int64_t block = BLOCK<typename E::Real>;
    int64_t all = call.rows * call.problem->row_length, last = end * block < all ? end * block : all;
    for (int64_t start = begin * block; start < last; start += PIECE) {
        int64_t elements = last - start < PIECE ? last - start : PIECE;
        const auto* signs = call.signs_at(start % call.problem->row_length);
        call.short_rows({call.x + start, call.out + start, signs, nullptr}, elements);
    }
}

// The same for rows with gaps: a row that fills a block is transformed where it is, and of shorter ones as many as fit in
// a block, side by side in a copy. Counts rows.
template <class E> static void gapped_short_rows(void* context, int64_t begin, int64_t end) {
    const Call<E>& call = *static_cast<Call<E>*>(context);
    constexpr int64_t block = BLOCK<typename E::Real>;
    int64_t length = call.problem->row_length;
    if (length >= block) {
        for (int64_t row = begin; row < end; row++) {
            auto place = call.row(row);
            for (int64_t start = 0; start < length; start += PIECE) {
                int64_t elements = length - start < PIECE ? length - start : PIECE;
                call.short_rows({place.x + start, place.out + start, call.signs_at(start), nullptr}, elements);
            }
        }
        return;
    }
    typename E::Memory copy[block];
    for (int64_t row = begin; row < end;) {
        int64_t together = end - row < block / length ? end - row : block / length;
        for (int64_t r = 0; r < together; r++) __builtin_memcpy(copy + r * length, call.row(row + r).x, length * sizeof(copy[0]));
        call.short_rows({copy, copy, call.signs, nullptr}, together * length);
        for (int64_t r = 0; r < together; r++) __builtin_memcpy(call.row(row + r).out, copy + r * length, length * sizeof(copy[0]));
        row += together;
    }
}

// Powers of two of a block and more, up to what a scratch row holds. Counts transforms.
template <class E> static void whole_rows(void* context, int64_t begin, int64_t end) {
    Call<E>& call = *static_cast<Call<E>*>(context);
    using R = typename E::Real;
    R* scratch = static_cast<R*>(thread_scratch(scratch_elements<R>(call.problem->log2) * int64_t(sizeof(R))));
    if (scratch == nullptr) return call.fail();
    for (int64_t index = begin; index < end; index++) {
        call.with_ends(call.transform(index), [&](const auto& from, const auto& to) { sylvester_row<R>(from, to, call.problem->log2, scratch); });
    }
    finish_streams();
}

// The Sylvester factor of `elements` consecutive elements, which are sub-rows of 2^log2, to `rows` at a distance of
// `pitch`. Sub-rows below a block are written without gaps, which `pitch` must allow for, and up to a block beyond.
template <class E>
static void sub_rows(const Call<E>& call, const typename Call<E>::Place& place, int64_t elements, typename E::Real* rows,
                     int64_t pitch, typename E::Real* scratch) {
    using R = typename E::Real;
    int64_t log2 = call.problem->log2;
    call.with_source(place, [&](auto from) {
        if (log2 < BLOCK_BITS<R>) {
            short_runs(from, elements, log2, Keep<R>{rows}, Keep<R>{rows + elements / BLOCK<R> * BLOCK<R>});
            return;
        }
        for (int64_t i = 0; i < elements >> log2; i++) sylvester_row<R>(from.at(i << log2), Keep<R>{rows + i * pitch}, log2, scratch);
    });
}

// Base matrix, sub-rows at least as long as a panel of the product is wide. Counts transforms.
template <class E> static void wide_products(void* context, int64_t begin, int64_t end) {
    Call<E>& call = *static_cast<Call<E>*>(context);
    using R = typename E::Real;
    int64_t order = call.problem->order, log2 = call.problem->log2, length = int64_t(1) << log2;
    int64_t pitch = log2 < BLOCK_BITS<R> ? length : length + Work<R>::LANES;
    int64_t elements = order * pitch + BLOCK<R>;
    int64_t scratch = scratch_elements<R>(log2), table = call.product_elements();
    R* rows = static_cast<R*>(thread_scratch((elements + (scratch > table ? scratch : table)) * int64_t(sizeof(R))));
    if (rows == nullptr) return call.fail();
    for (int64_t index = begin; index < end; index++) {
        auto place = call.transform(index);
        sub_rows(call, place, call.size, rows, pitch, rows + elements);
        call.with_sink(place, [&](const auto& to) {
            for (int64_t c = 0; c < length; c += COLUMNS<R>) call.multiply(rows + c, pitch, rows + elements, to, c, length);
        });
    }
    finish_streams();
}

// Makes a panel of transforms of single elements one after the other, straight from the input, and says whether it could.
template <class E> static bool gather_panel(const Call<E>& call, int64_t index, int64_t together, typename E::Real* panel) {
    if constexpr (sizeof(*panel) == sizeof(float)) {
        int64_t order = call.problem->order, elements = together * order, line = LINE_BYTES / int64_t(sizeof(typename E::Memory));
        if (order % 4 != 0 || together % Work<float>::LANES != 0) return false;
        const auto* x = call.transform(index).x;
        // The hardware does not fetch ahead for reads in places four transforms apart (measured: 28 in float16 1.5 -> 1.0 ms).
        for (int64_t i = elements; i < 2 * elements; i += line) __builtin_prefetch(x + i);
        gather_elements<E>(panel, x, together, order);
        return true;
    }
    return false;
}

// Base matrix, shorter sub-rows: those of several transforms side by side make a panel. A panel's columns are computed
// alike, so it does not matter which of them a transform gets. Counts transforms.
template <class E> static void narrow_products(void* context, int64_t begin, int64_t end) {
    Call<E>& call = *static_cast<Call<E>*>(context);
    using R = typename E::Real;
    int64_t order = call.problem->order, length = int64_t(1) << call.problem->log2, side = COLUMNS<R> / length;
    int64_t run_elements = side * call.size + BLOCK<R>, panel_elements = order * COLUMNS<R>;
    int64_t table_elements = call.product_elements();
    R* run = static_cast<R*>(thread_scratch((run_elements + 2 * panel_elements + table_elements) * int64_t(sizeof(R))));
    if (run == nullptr) return call.fail();
    R *panel = run + run_elements, *result = panel + panel_elements, *table = result + panel_elements;
    // Transforms that follow each other in memory are read and written as one run; signs are periodic, but not for long.
    bool one_run = call.dense && call.signs == nullptr, single = one_run && length == 1;
    for (int64_t index = begin; index < end; index += side) {
        int64_t together = end - index < side ? end - index : side, at_once = one_run ? together : 1;
        if (together < side) __builtin_memset(panel, 0, panel_elements * sizeof(R));
        if (!single || !gather_panel(call, index, together, panel)) {
            R* source = run;
            if (single && sizeof(typename E::Memory) == sizeof(R)) {
                // Elements to compute with as they are, which are only read (measured: 12 in float64 5.9 -> 3.1 ms without the copy).
                source = const_cast<R*>(reinterpret_cast<const R*>(call.transform(index).x));
            } else {
                for (int64_t g = 0; g < together; g += at_once) {
                    sub_rows(call, call.transform(index + g), at_once * call.size, run + g * call.size, length, run);
                }
            }
            exchange_sub_rows<false>(panel, source, together, order, length);
        }
        exchange_sub_rows<true>(call.multiply_panel(panel, table, result), run, together, order, length);
        for (int64_t g = 0; g < together; g += at_once) {
            call.finish(run + g * call.size, call.transform(index + g), at_once * call.size);
        }
    }
    finish_streams();
}

// How the rows of a call are shared out: a function and what it counts, how many there are, and how many are worth a
// thread's waking.
struct Sharing {
    Range range;
    int64_t count;
    int64_t grain;
};

// Transforms that narrow_products takes side by side; 1 for all other calls.
template <class E> static int64_t side_by_side(const Call<E>& call) {
    int64_t length = int64_t(1) << call.problem->log2, columns = COLUMNS<typename E::Real>;
    return call.base == nullptr || length >= columns ? 1 : columns / length;
}

// Of rows that one thread can transform, elements of which are neighbours.
template <class E> static Sharing sharing_of(const Call<E>& call) {
    constexpr int64_t block = BLOCK<typename E::Real>;
    int64_t length = call.problem->row_length, transforms = call.rows * call.blocks;
    int64_t grain = PIECE / call.size > 0 ? PIECE / call.size : 1, side = side_by_side(call);
    if (call.base != nullptr) {
        // A piece of narrow products is a whole number of panels, so that only the last one is partly empty.
        return {side == 1 ? wide_products<E> : narrow_products<E>, transforms, (grain + side - 1) / side * side};
    }
    if (call.problem->log2 >= BLOCK_BITS<typename E::Real>) return {whole_rows<E>, transforms, grain};
    if (call.dense) return {dense_short_rows<E>, (call.rows * length + block - 1) / block, PIECE / block};
    return {gapped_short_rows<E>, call.rows, PIECE / length > 0 ? PIECE / length : 1};
}

template <class E> static Status run(const Problem& problem) {
    Call<E> call(problem);
    if (call.status != DONE) return Status(call.status);
    int64_t transforms = call.rows * call.blocks;
    if (problem.columns > 0) {
        int64_t tiles = (problem.columns + COLUMN_TILE - 1) / COLUMN_TILE * transforms;
        int64_t together = PIECE / (call.size * COLUMN_TILE);
        parallel_for(tiles, together > 0 ? together : 1, problem.threads, column_tiles<E>, &call);
    } else if (problem.log2 > LARGEST_ROW_BITS) {
        large_rows(call, transforms);
    } else {
        Sharing sharing = sharing_of(call);
        parallel_for(sharing.count, sharing.grain, problem.threads, sharing.range, &call);
    }
    return Status(call.status);
}

Status transform(const Problem& problem) {
    switch (problem.element) {
        case FLOAT32: return run<Float32>(problem);
        case FLOAT64: return run<Float64>(problem);
        case FLOAT16: return run<Float16>(problem);
        case BFLOAT16: return run<BFloat16>(problem);
    }
    return UNKNOWN_ELEMENT;
}

// Elements that are transformed and then quantized together: a tile of 8 KiB, which stays in the first-level cache beside
// the rows it comes from (measured: INT8 from float32, 1024: 16 KiB 1.8 ms, 8 KiB 1.4, 4 KiB 1.4; bfloat16 1.5, 1.5, 1.6).
constexpr int64_t TILE = 1 << 11;

// Rows of element type E, and what becomes of them.
template <class E> struct QuantizedRows {
    Call<Float32>* call;  // addresses rows, whatever their type
    const Quantization* quantization;
    int64_t tile_rows;
};

// Counts rows.
template <class E> static void quantized_rows(void* context, int64_t begin, int64_t end) {
    const QuantizedRows<E>& work = *static_cast<QuantizedRows<E>*>(context);
    using Memory = typename E::Memory;
    constexpr int64_t lanes = Work<float>::LANES;
    Call<Float32>& call = *work.call;
    int64_t length = call.problem->row_length, tile_elements = work.tile_rows * length + lanes;
    int64_t scratch = quantize_scratch(work.tile_rows * length, *work.quantization);
    float* tile = static_cast<float*>(thread_scratch((tile_elements + scratch) * int64_t(sizeof(float)), SCRATCH_TILE));
    if (tile == nullptr) return call.fail();
    for (int64_t row = begin; row < end; row += work.tile_rows) {
        int64_t rows = end - row < work.tile_rows ? end - row : work.tile_rows;
        const float* source = tile;
        if (sizeof(Memory) == sizeof(float) && call.dense) {
            source = call.x + row * length;
        } else {
            for (int64_t r = 0; r < rows; r++) {
                const Memory* x = static_cast<const Memory*>(call.problem->x) + call.x_offset(row + r);
                float* to = tile + r * length;
                int64_t i = 0;
                for (; i + lanes <= length; i += lanes) store_bits(to + i, E::load(x + i));
                if (i < length) {
                    Memory rest[lanes] = {};
                    __builtin_memcpy(rest, x + i, size_t(length - i) * sizeof(Memory));
                    store_bits(to + i, E::load(rest));  // what is behind a tile's last row, a vector, is nobody's
                }
            }
        }
        Call<Float32> part(call, source, tile, rows);
        Sharing sharing = sharing_of(part);
        sharing.range(&part, 0, sharing.count);
        if (part.status != DONE) return call.fail();
        const uint16_t* next = nullptr;
        if constexpr (sizeof(Memory) == sizeof(uint16_t)) {
            if (call.dense) next = static_cast<const uint16_t*>(call.problem->x) + (row + rows) * length;
        }
        quantize_rows(tile, row, rows, length, *work.quantization, tile + tile_elements, next);
    }
}

template <class E> static Status run_quantized(const Problem& problem, const Quantization& quantization) {
    Call<Float32> call(problem);
    if (call.status != DONE) return Status(call.status);
    int64_t length = problem.row_length, side = side_by_side(call), together = (side + call.blocks - 1) / call.blocks;
    QuantizedRows<E> work = {&call, &quantization, TILE / length > together ? TILE / length : together};
    int64_t tiles = PIECE / (length * work.tile_rows);
    parallel_for(call.rows, (tiles > 0 ? tiles : 1) * work.tile_rows, problem.threads, quantized_rows<E>, &work);
    return Status(call.status);
}

Status quantize(const Problem& problem, const Quantization& quantization) {
    if (problem.log2 > LARGEST_ROW_BITS || problem.columns > 0) return UNSUPPORTED;
    switch (problem.element) {
        case FLOAT32: return run_quantized<Float32>(problem, quantization);
        case FLOAT16: return run_quantized<Float16>(problem, quantization);
        case BFLOAT16: return run_quantized<BFloat16>(problem, quantization);
    }
    return UNKNOWN_ELEMENT;
}

}  // namespace HADACORE_ISA
