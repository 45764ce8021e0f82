# Page tables for the first GiB and the LAPIC. Accessed and dirty bits are set beforehand, so
# that the CPU never writes them. All of it is open to ring 3, which builds the rest itself.

.org scribbler_image_start + 0x4000
    .quad SC_PDPT + 0x27
    .zero 4096 - 8
    .quad SC_PD0 + 0x27, 0, 0, SC_PD3 + 0x27
    .zero 4096 - 32
.set sc_v, 0
.rept 512
    .quad sc_v * 0x200000 + 0xE7
    .set sc_v, sc_v + 1
.endr
.set sc_v, 0
.rept 512
    .if sc_v == 503
    .quad SC_LAPIC + 0xF7                # uncached
    .else
    .quad 0
    .endif
    .set sc_v, sc_v + 1
.endr
scribbler_image_end:
