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

// NoteStopped writes down that somebody stopped a service, or that it was started.
func NoteStopped(name string, stopped bool) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("note whether service %s is to run: %w", name, err)
		}
	}()
	key, _, err := registry.CreateKey(registry.LOCAL_MACHINE, StoppedKey(name), registry.SET_VALUE)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, key.Close()) }()
	if stopped {
		return key.SetDWordValue(StoppedValue, 1)
	}
	if err := key.DeleteValue(StoppedValue); !errors.Is(err, registry.ErrNotExist) {
		return err
	}
	return nil
}
