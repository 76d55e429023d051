// Package e2e: tests that drive the built programs. Nothing else.
//
// TestStatements decides the statements of protocol Part 8, TestAcceptance… the rest of what a stranger would try. Set
// E2E_RACE=1 to test programs with the race detector, STATEMENTS_TABLE to a file name to keep the table.
package e2e
