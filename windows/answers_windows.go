package windows

import (
	"errors"
	"fmt"

	"golang.org/x/sys/windows/registry"
)

// ReadAnswers reads what the installer was told. Nothing there is no error.
func ReadAnswers() (a Answers, err error) {
	key, err := registry.OpenKey(registry.LOCAL_MACHINE, AnswersKey, registry.QUERY_VALUE|registry.WOW64_64KEY)
	if errors.Is(err, registry.ErrNotExist) {
		return a, nil
	}
	if err == nil {
		defer func() { err = errors.Join(err, key.Close()) }()
		for name, to := range map[string]*string{AnswerGateway: &a.Gateway, AnswerTokenFile: &a.TokenFile, AnswerProject: &a.Project, AnswerName: &a.Name} {
			text, _, verr := key.GetStringValue(name)
			if verr != nil && !errors.Is(verr, registry.ErrNotExist) {
				err = errors.Join(err, verr)
			}
			*to = text
		}
	}
	if err != nil {
		return a, fmt.Errorf(`read HKLM\%s: %w`, AnswersKey, err)
	}
	return a, nil
}

// NoteStarted writes down that a service was started, and the first word of its command line.
func NoteStarted(name, mode string) error {
	return note(name, func(key registry.Key) error {
		if err := key.DeleteValue(StoppedValue); err != nil && !errors.Is(err, registry.ErrNotExist) {
			return err
		}
		return key.SetStringValue(ModeValue, mode)
	})
}

// NoteStopped writes down that somebody stopped a service.
func NoteStopped(name string) error {
	return note(name, func(key registry.Key) error { return key.SetDWordValue(StoppedValue, 1) })
}

func note(name string, write func(registry.Key) error) error {
	key, _, err := registry.CreateKey(registry.LOCAL_MACHINE, NotesKey(name), registry.SET_VALUE)
	if err == nil {
		err = errors.Join(write(key), key.Close())
	}
	if err != nil {
		return fmt.Errorf("note how service %s is to run: %w", name, err)
	}
	return nil
}
