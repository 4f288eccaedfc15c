// A fault in a kernel: says where before the process dies of it.
#include "device.hpp"

#include <cstring>
#include <initializer_list>
#include <mutex>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

namespace emu {

namespace {

struct sigaction before_segv, before_bus;

// All in one write, without anything that a signal handler may not call.
struct Line {
    char text[512];
    size_t used = 0;
    Line& operator<<(const char* part) {
        for (; *part && used < sizeof text - 1; ++part) text[used++] = *part;
        return *this;
    }
    Line& operator<<(size_t number) {
        char digits[24];
        size_t at = sizeof digits;
        digits[--at] = 0;
        do digits[--at] = char('0' + number % 10);
        while (number /= 10);
        return *this << digits + at;
    }
    Line& operator<<(const uint3& v) {
        return *this << "(" << size_t(v.x) << ", " << size_t(v.y) << ", " << size_t(v.z) << ")";
    }
};

void explain(const unsigned char* address) {
    const Device& d = *device;
    Line line;
    line << "emulated GPU: kernel " << d.kernel->name << ", block " << view.block << ", thread " << view.thread << ": ";
    const unsigned char* guard = d.shared + d.shared_room;
    uintptr_t at;
    size_t bytes;
    bool freed;
    if (address >= d.stacks && address < d.stacks + MAX_THREADS * (STACK + d.page)) {
        line << "its stack of " << STACK << " bytes overflows: too many local variables, or recursion";
    } else if (address >= guard && address < guard + d.page) {
        line << "access " << size_t(address - guard) + (d.dynamic_bytes + 15) / 16 * 16 - d.dynamic_bytes
             << " bytes past the end of its dynamic shared memory (" << d.dynamic_bytes << " bytes)";
    } else if (nearest_buffer(address, at, bytes, freed)) {
        const uintptr_t bad = reinterpret_cast<uintptr_t>(address);
        line << "access " << (bad < at ? at - bad : bad < at + bytes ? bad - at : bad - at - bytes)
             << (bad < at ? " bytes before the start of" : bad < at + bytes ? " bytes into" : " bytes past the end of")
             << (freed ? " a freed device buffer of " : " a device buffer of ") << bytes << " bytes";
    } else {
        line << "access to an address that is in no device buffer";
    }
    line << "\n";
    if (write(STDERR_FILENO, line.text, line.used) < 0) return; // nobody to tell
}

void handler(int signal, siginfo_t* info, void*) {
    if (device && device->running) {
        device->running = false; // once
        explain(static_cast<const unsigned char*>(info->si_addr));
    }
    // Whoever was there before does the rest: the access happens again when this returns.
    sigaction(signal, signal == SIGBUS ? &before_bus : &before_segv, nullptr);
}

} // namespace

void watch_faults() {
    static std::once_flag installed;
    std::call_once(installed, [] {
        struct sigaction action;
        memset(&action, 0, sizeof action);
        action.sa_sigaction = handler;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK; // the fibre's own stack may be full
        sigemptyset(&action.sa_mask);
        sigaction(SIGSEGV, &action, &before_segv);
        sigaction(SIGBUS, &action, &before_bus);
    });
    static __thread bool has_stack;
    if (has_stack) return;
    has_stack = true;
    stack_t current;
    if (sigaltstack(nullptr, &current) == 0 && !(current.ss_flags & SS_DISABLE)) return; // Rust's threads have one
    constexpr size_t bytes = 64 << 10;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return;
    stack_t mine;
    memset(&mine, 0, sizeof mine);
    mine.ss_sp = memory; // as long as the thread
    mine.ss_size = bytes;
    sigaltstack(&mine, nullptr);
}

} // namespace emu
