// Runs tasks on threads that live for one call, so there is nothing that a fork could leave behind. No task reads what
// another writes: results are the same bits for any number of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

// A thread's own, whole cache lines.
struct Scratch {
    float* data;

    explicit Scratch(int64_t size) : data(static_cast<float*>(::operator new(size * sizeof(float), LINE))) {}
    ~Scratch() { ::operator delete(data, LINE); }
    static constexpr std::align_val_t LINE{64};
};

// run_task(task, scratch) for every task, on as many threads as `elements` are worth. 0, or 1 if there was not enough
// memory.
template <class Task>
int run_tasks(int64_t tasks, int64_t elements, int threads, int64_t scratch_size, const Task& run_task) {
    constexpr int64_t WORTH_A_THREAD = 1 << 17;  // about 0.1 ms
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    const auto work = [&] {
        try {
            const Scratch scratch(scratch_size);
            for (int64_t task; !failed && (task = next++) < tasks;) run_task(task, scratch.data);
        } catch (const std::bad_alloc&) {
            failed = true;
        }
    };
    std::vector<std::thread> others;
    try {
        const int64_t wanted = std::min({int64_t(threads), tasks, 1 + elements / WORTH_A_THREAD}) - 1;
        others.reserve(std::max<int64_t>(wanted, 0));
        for (int64_t i = 0; i < wanted; ++i) others.emplace_back(work);
    } catch (const std::system_error&) {  // no more threads to be had: fewer do the same
    } catch (const std::bad_alloc&) {
    }
    work();
    for (std::thread& other : others) other.join();
    return failed;
}
