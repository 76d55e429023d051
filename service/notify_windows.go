package service

import "golang.org/x/sys/windows"

func closeOnExec(handle uintptr) error {
	return windows.SetHandleInformation(windows.Handle(handle), windows.HANDLE_FLAG_INHERIT, 0)
}
