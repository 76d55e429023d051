package main

import "strconv"

// signalNumber is the number of a signal, as far as it is one.
func signalNumber(name string) int {
	n, _ := strconv.Atoi(name)
	return n
}
