#include "fibre.hpp"

#ifdef EMU_FAST_SWITCH

// Two ways to leave, for the processor's prediction: `ret` where the other side stands at the same place as this one, as
// fibres at a barrier do; a jump anywhere else, where a `ret` would always be predicted wrong.
#define EMU_SWITCH(name, leave)                                                                                     \
    asm(".pushsection .text\n.globl " name "\n.hidden " name "\n.type " name ", @function\n" name ":\n"              \
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\nmovq %rsp, (%rdi)\n"                \
        "movq %rsi, %rsp\npopq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\n" leave "\n.size " name \
        ", .-" name "\n.popsection\n");
EMU_SWITCH("sparse_engine_emu_switch", "popq %rcx\njmpq *%rcx")
EMU_SWITCH("sparse_engine_emu_switch_alike", "ret")

#endif
