// Package msi: The database of Windows Installer: tables, strings and summary, as the streams that a compound file carries.
//
// It knows how a database is written, and not what is in one: tables are values with columns and rows. The streams are as
// Windows Installer and msitools read them; nothing about them is documented by Microsoft beyond the tables' meaning.
package msi
