// Switching between stacks: sixteen instructions on x86-64, ucontext elsewhere (which makes two system calls a switch).
#pragma once

#include <cstddef>

#if defined(__x86_64__) && defined(__ELF__) && !defined(EMU_UCONTEXT)
#define EMU_FAST_SWITCH
#else
#include <ucontext.h>
#endif

namespace emu {

#ifdef EMU_FAST_SWITCH

// Saves the callee-saved registers on the running stack, its pointer in *from, and goes on at `to` (fibre.cpp).
extern "C" void sparse_engine_emu_switch(void** from, void* to);
// The same; faster if `to` waits where `from` does.
extern "C" void sparse_engine_emu_switch_alike(void** from, void* to);
struct Context {
    void* sp = nullptr;
    // Makes the next switch here call `entry`, which must not return.
    void prepare(unsigned char* stack, size_t bytes, void (*entry)()) {
        void** top = reinterpret_cast<void**>(stack + bytes); // 16-byte aligned
        *--top = nullptr;                                     // where `entry` would return to; keeps the ABI's alignment
        *--top = reinterpret_cast<void*>(entry);
        for (int i = 0; i < 6; ++i) *--top = nullptr;
        sp = top;
    }
    void go(Context& to) { sparse_engine_emu_switch(&sp, to.sp); }
    void go_alike(Context& to) { sparse_engine_emu_switch_alike(&sp, to.sp); }
};

#else

struct Context {
    ucontext_t state;
    void prepare(unsigned char* stack, size_t bytes, void (*entry)()) {
        getcontext(&state);
        state.uc_stack.ss_sp = stack;
        state.uc_stack.ss_size = bytes;
        state.uc_link = nullptr;
        makecontext(&state, entry, 0);
    }
    void go(Context& to) { swapcontext(&state, &to.state); }
    void go_alike(Context& to) { go(to); }
};

#endif

} // namespace emu
