// The kernels for one processor: targets.h includes this once for each, with its number of LANES.

#include "vectors.h"

#include "group.h"

#include "linear.h"
#include "lines.h"
#include "log_scale.h"

static void compute(const Block& block) {
    if (is_narrow(block))
        block.y ? forward_linear(block) : backward_linear(block);
    else
        block.y ? forward_log_scale(block) : backward_log_scale(block);
}

static void compute(const Volume& volume) { volume.y ? forward_lines(volume) : backward_lines(volume); }
