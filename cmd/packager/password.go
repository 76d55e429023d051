package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// passwordVariable is the environment variable that may hold the password of a key.
const passwordVariable = "PACKAGER_PASSWORD"

const passwordHelp = "The password comes from --password-file (- is standard input), from the variable " + passwordVariable + ", or from the\n" +
	"terminal; never from the command line, where every user of the machine could read it."

// maxPassword bounds a password in bytes; minisign takes as many.
const maxPassword = 1024

// password is where the one of a key comes from.
type password struct{ file string }

func (p *password) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.file, "password-file", "", "`file` whose first line is the password, - for standard input")
}

// given reports whether there is a password without asking anybody.
func (p *password) given(s *streams) bool { return p.file != "" || s.env(passwordVariable) != "" }

// errNoPassword: nobody said it, and there is nobody to ask.
var errNoPassword error = &passwordError{"no password"}

// passwordError: what was given is no password.
type passwordError struct{ text string }

// Error says what is wrong.
func (e *passwordError) Error() string { return e.text }

// Hint says how to give one.
func (e *passwordError) Hint() string {
	return "give --password-file FILE, or set " + passwordVariable + "; keygen --no-password makes a key without one"
}

// read returns the password; fresh asks a person twice, because nobody can ask for a forgotten one.
func (p *password) read(s *streams, fresh bool) (string, error) {
	switch {
	case p.file == "-":
		return firstLine(s.in)
	case p.file != "":
		f, err := os.Open(p.file)
		if err != nil {
			return "", fmt.Errorf("read password: %w", err)
		}
		defer func() { _ = f.Close() }()
		return firstLine(f)
	case s.env(passwordVariable) != "":
		return s.env(passwordVariable), nil
	}
	terminal, ok := s.in.(*os.File)
	if !ok || !term.IsTerminal(int(terminal.Fd())) {
		return "", errNoPassword
	}
	word, err := ask(s, terminal, "password of the key: ")
	if err != nil || !fresh {
		return word, err
	}
	again, err := ask(s, terminal, "once more: ")
	if err == nil && word != again {
		err = &passwordError{"the two passwords differ"}
	}
	return word, err
}

func ask(s *streams, terminal *os.File, question string) (string, error) {
	if _, err := fmt.Fprint(s.err, question); err != nil {
		return "", err
	}
	word, err := term.ReadPassword(int(terminal.Fd()))
	_, _ = fmt.Fprintln(s.err)
	if err != nil {
		return "", fmt.Errorf("read password: %w", err)
	}
	if len(word) == 0 {
		return "", errNoPassword
	}
	return string(word), nil
}

func firstLine(r io.Reader) (string, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxPassword+2))
	if err != nil {
		return "", fmt.Errorf("read password: %w", err)
	}
	line, _, _ := bytes.Cut(data, []byte("\n"))
	word := strings.TrimSuffix(string(line), "\r")
	if len(word) > maxPassword {
		return "", &passwordError{fmt.Sprintf("the password has more than %d bytes", maxPassword)}
	}
	if word == "" {
		return "", errNoPassword
	}
	return word, nil
}

// errIsOpen: a password for a key without one is perhaps the wrong key.
var errIsOpen = errors.New("this key has no password, and one was given")
