"""Integer arithmetic as devices do it, to the last bit; whole networks in it; what each of its errors costs."""
