#include <string>

std::string Greeting() { return "hello from the bundle"; }
